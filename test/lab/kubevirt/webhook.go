package kubevirt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/godwit-cni/godwit/test/lab/pki"
)

const (
	// webhookConfiguration tells the API server of the webhook. The webhook's name is KubeVirt's: kubectl drain prints it.
	webhookConfiguration = "kubevirt-stand-in"
	evictionWebhook      = "virt-launcher-eviction-interceptor.kubevirt.io"
	// webhookTimeout bounds one question, in seconds.
	webhookTimeout = 10
	// headerTimeout bounds what a client takes to ask.
	headerTimeout = 10 * time.Second
)

// serveEvictions answers the API server, which is on the same machine, until ctx ends. Nobody else trusts the certificate: it is made anew at each start.
func (e *engine) serveEvictions(ctx context.Context) (err error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	now := time.Now()
	ca, err := pki.NewAuthority(now)
	if err != nil {
		return err
	}
	cert, key, err := ca.Server(now, "virt-api", nil, []netip.Addr{loopback})
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("use the webhook's certificate: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(loopback, 0).String())
	if err != nil {
		return fmt.Errorf("listen for the API server's questions about evictions: %w", err)
	}
	server := &http.Server{
		Handler: &evictions{api: e.api}, ReadHeaderTimeout: headerTimeout,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	defer func() {
		closed := server.Close()
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		err = errors.Join(err, closed)
	}()
	if err := e.register(ctx, "https://"+l.Addr().String(), ca.Certificate()); err != nil && ctx.Err() == nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// register tells the API server where to ask. It tries until it may: in a lab that is brought up to date this user's rights come later than its process.
func (e *engine) register(ctx context.Context, url string, ca []byte) error {
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: webhookConfiguration}}
	var told string
	for {
		_, err := controllerutil.CreateOrUpdate(ctx, e.api, config, func() error {
			config.Webhooks = []admissionregistrationv1.ValidatingWebhook{launcherEvictions(url, ca)}
			return nil
		})
		if err == nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			e.log.Info("evictions are not asked about yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("tell the API server whom to ask about evictions: %w", errors.Join(ctx.Err(), err))
		case <-time.After(crdPoll):
		}
	}
}

// launcherEvictions are, as in KubeVirt, those of pods with a launcher's name. None is evicted that nobody can be asked about.
func launcherEvictions(url string, ca []byte) admissionregistrationv1.ValidatingWebhook {
	return admissionregistrationv1.ValidatingWebhook{
		Name: evictionWebhook, AdmissionReviewVersions: []string{"v1"}, TimeoutSeconds: ptr(int32(webhookTimeout)),
		FailurePolicy: ptr(admissionregistrationv1.Fail), SideEffects: ptr(admissionregistrationv1.SideEffectClassNoneOnDryRun),
		ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.OperationAll},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/eviction"}},
		}},
		MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "only-vms", Expression: `object.metadata.name.startsWith("virt-launcher")`}},
	}
}
