package lab

import (
	"context"
	"errors"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/test/lab/check"
)

// nbFacts are what the northbound database says, all at one moment.
func nbFacts(ctx context.Context, endpoint string, facts *check.Facts) error {
	db, err := nbdb.FullDatabaseModel()
	if err != nil {
		return fmt.Errorf("NB model: %w", err)
	}
	p := &facts.Policies
	tables := []client.MonitorOption{
		client.WithTable(&nbdb.LogicalSwitchPort{}), client.WithTable(&nbdb.PortGroup{}), client.WithTable(&nbdb.AddressSet{}), client.WithTable(&nbdb.ACL{}),
	}
	return read(ctx, endpoint, db, tables, func(c client.Client) error {
		var ports []*nbdb.LogicalSwitchPort
		if err := errors.Join(c.List(ctx, &ports), c.List(ctx, &p.Groups), c.List(ctx, &p.Sets), c.List(ctx, &p.ACLs)); err != nil {
			return err
		}
		for _, r := range ports {
			facts.Ports = append(facts.Ports, check.Port{
				Name: ident.PortName(r.Name), Type: r.Type, Addresses: r.Addresses, RequestedChassis: r.Options[ident.OptionRequestedChassis],
				ActivationStrategy: r.Options[ident.OptionActivationStrategy], UID: r.ExternalIDs[ident.KeyUID], RowUUID: r.UUID, Moved: r.ExternalIDs[ident.KeyMoved],
			})
		}
		return nil
	})
}
