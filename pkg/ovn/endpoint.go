package ovn

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ovn-kubernetes/libovsdb/client"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// endpointForm is what an endpoint looks like, for people.
const endpointForm = "ssl:HOST:PORT, tcp:HOST:PORT or unix:PATH"

// secure says whether an endpoint is reached by TLS, or why it is not an endpoint.
func secure(endpoint string) (bool, error) {
	proto, address, _ := strings.Cut(endpoint, ":")
	switch proto {
	case "unix":
		if address != "" {
			return false, nil
		}
	case "tcp", "ssl":
		if host, port, err := net.SplitHostPort(address); err == nil && host != "" && port != "" {
			return proto == "ssl", nil
		}
	}
	return false, fmt.Errorf("%q: want %s", endpoint, endpointForm)
}

// CheckEndpoints says what is wrong with endpoints: one that is none, or TLS and certificates, nil for none, not together. hint says where certificates come from.
func CheckEndpoints(endpoints []string, certificates *pki.Files, hint string) error {
	var errs []error
	for _, e := range endpoints {
		secure, err := secure(e)
		switch {
		case err != nil:
			errs = append(errs, err)
		case secure && certificates == nil:
			errs = append(errs, fmt.Errorf("%q is reached by TLS, which needs certificates: %s", e, hint))
		case !secure && certificates != nil && !strings.HasPrefix(e, "unix:"):
			errs = append(errs, fmt.Errorf("%q would be reached without TLS though there are certificates (%s): write ssl:, or leave them out", e, hint))
		}
	}
	return errors.Join(errs...)
}

// hosts are the names and addresses of the endpoints that are reached by TLS.
func (c Config) hosts() []string {
	var out []string
	for _, e := range c.Endpoints {
		if host, _, err := net.SplitHostPort(strings.TrimPrefix(e, "ssl:")); err == nil && strings.HasPrefix(e, "ssl:") {
			out = append(out, host)
		}
	}
	return out
}

// certified adds what TLS needs, and reads the certificates once, for an error that names what is wrong with them.
func (c Config) certified(opts []client.Option) ([]client.Option, error) {
	if c.TLS == nil {
		return opts, nil
	}
	if _, err := c.TLS.Check(time.Now()); err != nil {
		return nil, err
	}
	return append(opts, client.WithTLSConfig(c.TLS.ClientTLS(c.hosts(), time.Now))), nil
}
