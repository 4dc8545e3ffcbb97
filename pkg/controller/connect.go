package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/pki"
)

const (
	// Between two attempts to reach the databases.
	minConnectRetry = 100 * time.Millisecond
	maxConnectRetry = 5 * time.Second
	// certificateLook is how often the controller's certificate is looked at, for the metric.
	certificateLook = time.Minute
)

// connect reaches both databases. It tries until it does or ctx ends, when nb is nil, and answers the kubelet's probes meanwhile. Certificates that somebody else makes must be there.
func connect(ctx context.Context, c Config) (nb *ovn.NB, sb *ovn.SB, err error) {
	if c.TLS != nil && !c.Issuing {
		if _, err := c.TLS.Check(time.Now()); err != nil {
			return nil, nil, err
		}
	}
	w, err := newWaiting(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	defer w.close()
	once := func() error {
		if nb == nil {
			// Several attempts, one registry: an NB that has failed registers nothing.
			if nb, err = ovn.Connect(ctx, ovn.Config{Endpoints: c.NBEndpoints, TLS: c.TLS, Registerer: c.Registerer, Logger: c.Logger}); err != nil {
				return err
			}
		}
		sb, err = ovn.ConnectSB(ctx, ovn.Config{Endpoints: c.SBEndpoints, TLS: c.TLS, Logger: c.Logger})
		return err
	}
	retry := backoff.NewExponentialBackOff(backoff.WithInitialInterval(minConnectRetry), backoff.WithMaxInterval(maxConnectRetry), backoff.WithMaxElapsedTime(0))
	err = backoff.RetryNotify(once, backoff.WithContext(retry, ctx), func(err error, next time.Duration) {
		w.tell(err)
		c.Logger.Warn("OVN's databases are not reachable yet", "error", err, "retry_in", next.Round(time.Millisecond))
	})
	if err == nil {
		return nb, sb, nil
	}
	if nb != nil {
		nb.Close()
	}
	return nil, nil, nil //nolint:nilerr // told to end before it connected: nothing else ends the attempts
}

// watchCertificate tells when the controller's certificate expires, until ctx ends.
func watchCertificate(ctx context.Context, c Config) error {
	expiry := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "godwit_certificate_expiry_timestamp_seconds", Help: "When a certificate expires, in seconds since 1970.",
	}, []string{"certificate"})
	if err := c.Registerer.Register(expiry); err != nil {
		return fmt.Errorf("register metrics of certificates: %w", err)
	}
	tick := time.NewTicker(certificateLook)
	defer tick.Stop()
	for {
		m, err := c.TLS.Check(time.Now())
		if err != nil {
			c.Logger.Warn("the next connection with OVN's databases will fail", "error", err)
		} else {
			expiry.WithLabelValues("admin").Set(float64(m.Leaf().NotAfter.Unix()))
			expiry.WithLabelValues("admin-ca").Set(float64(m.CAs[0].NotAfter.Unix()))
			if pki.Due(m.Leaf(), time.Now()) {
				c.Logger.Warn("the certificate for OVN's databases has not been renewed though two thirds of its life have gone", "certificate", c.TLS.Cert, "until", m.Leaf().NotAfter)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
