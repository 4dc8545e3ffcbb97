package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/lab/check"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/policy/objects"
)

// apiFacts are what the API server says: pods, VMs, and what NetworkPolicies are about.
func (l *Lab) apiFacts(ctx context.Context, facts *check.Facts) error {
	config, err := l.RESTConfig()
	if err != nil {
		return err
	}
	scheme, err := kubevirt.Scheme()
	if err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("register Godwit's kinds: %w", err)
	}
	api, err := ctrlclient.New(config, ctrlclient.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	o, err := objects.Read(ctx, api)
	if err != nil {
		return err
	}
	for i := range o.Pods {
		if p := &o.Pods[i]; !p.Spec.HostNetwork {
			facts.Pods = append(facts.Pods, podFact(p))
		}
	}
	for i := range o.Ports {
		facts.VMs = append(facts.VMs, vmFact(o, &o.Ports[i]))
	}
	facts.Policies.Config, facts.Policies.Snapshot, facts.Policies.Now = policy.Config{Join: families(l.IPFamily(), joinNet)}, o.Snapshot(), time.Now()
	facts.Policies.Grace, err = handoverGrace(ctx, api)
	return err
}

func vmFact(o objects.Objects, p *v1alpha1.Port) check.VM {
	f := check.VM{
		Port: p.Namespace + "/" + p.Name, UID: string(p.UID), Row: ident.VMPort(p.Namespace, p.Spec.Target.Name, p.Spec.Target.Network),
		Ready: meta.IsStatusConditionTrue(p.Status.Conditions, "Ready"), Addresses: strings.Join(append([]string{p.Status.MAC}, p.Status.IPs...), " "),
	}
	if vmi := o.VMI(p); vmi != nil && !vmi.IsFinal() {
		f.Node = vmi.Status.NodeName
	}
	return f
}

// handoverGrace is what the controllers are started with.
func handoverGrace(ctx context.Context, api ctrlclient.Reader) (time.Duration, error) {
	grace := controller.Defaults().HandoverGrace
	var d appsv1.Deployment
	err := api.Get(ctx, ctrlclient.ObjectKey{Namespace: Namespace, Name: "godwit-controller"}, &d)
	if err != nil || len(d.Spec.Template.Spec.Containers) == 0 {
		return grace, ctrlclient.IgnoreNotFound(err)
	}
	args := d.Spec.Template.Spec.Containers[0].Args
	if slices.Contains(args, "--handover-rules=false") {
		return 0, nil
	}
	for _, a := range args {
		if text, ok := strings.CutPrefix(a, "--handover-grace="); ok {
			if grace, err = time.ParseDuration(text); err != nil {
				return 0, fmt.Errorf("flag %s of the controllers: %w", a, err)
			}
		}
	}
	return grace, nil
}
