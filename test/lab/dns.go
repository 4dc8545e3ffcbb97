package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/image"
)

const (
	dnsImage = "docker.io/godwitcni/lab-coredns:1"
	// dnsArchive is among the lab's images from the first StartDNS on, so that nodes that boot later have it.
	dnsArchive   = "coredns.tar"
	dnsNamespace = metav1.NamespaceSystem
	dnsSelector  = "k8s-app=kube-dns"
	dnsTimeout   = 10 * time.Minute
)

//go:embed coredns.yaml
var dnsManifest string

// DNSIPs are the addresses of the Service of the cluster's DNS, which kubelets tell pods whether or not it has been started.
func (l *Lab) DNSIPs() []netip.Addr {
	var ips []netip.Addr
	for _, p := range families(l.IPFamily(), svcNet) {
		ips = append(ips, boot.DNSAddress(p))
	}
	return ips
}

// StartDNS starts the cluster's DNS, a CoreDNS, and returns when it is ready: when it has read Services through the address of the Service "kubernetes". It changes
// nothing if it runs. It is no part of Up: most tests need no names, and its image takes some seconds to import.
func (l *Lab) StartDNS(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	program, err := binaries.CoreDNS(ctx, l.log)
	if err != nil {
		return err
	}
	unlock, err := lockLab(ctx, l.log, l.dir)
	if err != nil {
		return err
	}
	defer unlock()
	img := image.Image{Ref: dnsImage, Entrypoint: []string{"/coredns"}, Files: []image.File{{Path: "/coredns", From: program}}}
	if _, err := img.Ensure(filepath.Join(l.path(imagesDir), dnsArchive)); err != nil {
		return err
	}
	if err := l.updateImages(ctx); err != nil {
		return err
	}
	objects, err := ReadObjects(strings.NewReader(dnsManifest))
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, append(objects, l.dnsService())...); err != nil {
		return err
	}
	return l.awaitDNS(ctx)
}

// dnsService is the Service kube-dns: named so, and at those addresses, by convention.
func (l *Lab) dnsService() *unstructured.Unstructured {
	var ips []any
	for _, ip := range l.DNSIPs() {
		ips = append(ips, ip.String())
	}
	port := func(name string, number int64, protocol corev1.Protocol) any {
		return map[string]any{"name": name, "port": number, "protocol": string(protocol)}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": "kube-dns", "namespace": dnsNamespace, "labels": map[string]any{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
		"spec": map[string]any{
			"selector": map[string]any{"k8s-app": "kube-dns"}, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": string(corev1.IPFamilyPolicyPreferDualStack),
			"ports": []any{port("dns", 53, corev1.ProtocolUDP), port("dns-tcp", 53, corev1.ProtocolTCP), port("metrics", 9153, corev1.ProtocolTCP)},
		},
	}}
}

func (l *Lab) awaitDNS(ctx context.Context) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	for {
		list, err := client.CoreV1().Pods(dnsNamespace).List(ctx, metav1.ListOptions{LabelSelector: dnsSelector})
		if err == nil && len(list.Items) == 1 && podReady(&list.Items[0]) {
			return nil
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return fmt.Errorf("the cluster's DNS is not ready after %s: see godwit-lab kubectl -n %s describe pods, and logs -l %s: whether it reaches the Service kubernetes is the first thing to ask: %w",
				dnsTimeout, dnsNamespace, dnsSelector, errors.Join(err, pauseErr))
		}
	}
}
