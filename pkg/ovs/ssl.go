package ovs

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// TLSFiles are where ovn-controller finds its certificate, as paths that are the same for it and for us. It reads them again when they change.
type TLSFiles struct{ CA, Cert, Key string }

// sslOps makes the operations that let the node's one SSL row name the files; none if it does.
func (c *Client) sslOps(ctx context.Context, root *vswitchdb.OpenvSwitch, files TLSFiles) ([]ovsdb.Operation, error) {
	want := vswitchdb.SSL{UUID: "ssl", CaCert: files.CA, Certificate: files.Cert, PrivateKey: files.Key}
	if root.SSL != nil {
		have := vswitchdb.SSL{UUID: *root.SSL}
		if err := c.ovsdb.Get(ctx, &have); err != nil {
			return nil, fmt.Errorf("read the SSL row: %w", err)
		}
		if have.CaCert == want.CaCert && have.Certificate == want.Certificate && have.PrivateKey == want.PrivateKey && !have.BootstrapCaCert {
			return nil, nil
		}
		have.CaCert, have.Certificate, have.PrivateKey, have.BootstrapCaCert = want.CaCert, want.Certificate, want.PrivateKey, false
		return c.ovsdb.Where(&have).Update(&have, &have.CaCert, &have.Certificate, &have.PrivateKey, &have.BootstrapCaCert)
	}
	ops, err := c.create(&want)
	if err != nil {
		return nil, err
	}
	next := *root
	next.SSL = &want.UUID
	link, err := c.ovsdb.Where(root).Update(&next, &next.SSL)
	return append(ops, link...), err
}
