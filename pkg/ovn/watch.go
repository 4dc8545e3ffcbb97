package ovn

import (
	"maps"
	"reflect"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// WatchPorts calls changed, with the owner's namespace, name and kind, when a LogicalSwitchPort of ours is deleted or when a column that we write is changed,
// by whomever; a VM's also when it is added, since not all of it has one writer. changed must return at once.
func (nb *NB) WatchPorts(changed func(namespace, name, kind string)) {
	report := func(p *nbdb.LogicalSwitchPort) {
		if kind := p.ExternalIDs[ident.OwnerKey]; kind != "" {
			changed(p.ExternalIDs[ident.KeyNamespace], p.ExternalIDs[ident.KeyName], kind)
		}
	}
	nb.ovsdb.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc: func(_ string, row model.Model) {
			if p, ok := row.(*nbdb.LogicalSwitchPort); ok && p.ExternalIDs[ident.OwnerKey] == ident.OwnerVM {
				report(p)
			}
		},
		DeleteFunc: func(_ string, row model.Model) {
			if p, ok := row.(*nbdb.LogicalSwitchPort); ok {
				report(p)
			}
		},
		UpdateFunc: func(_ string, before, after model.Model) {
			old, ok := before.(*nbdb.LogicalSwitchPort)
			if !ok {
				return
			}
			p := after.(*nbdb.LogicalSwitchPort)
			if !slices.Equal(old.Addresses, p.Addresses) || !slices.Equal(old.PortSecurity, p.PortSecurity) ||
				old.Type != p.Type || !reflect.DeepEqual(old.Dhcpv4Options, p.Dhcpv4Options) || !reflect.DeepEqual(old.Dhcpv6Options, p.Dhcpv6Options) ||
				!maps.Equal(old.Options, p.Options) || !maps.Equal(old.ExternalIDs, p.ExternalIDs) {
				report(old) // the old owner: somebody may have taken the mark away
			}
		},
	})
}
