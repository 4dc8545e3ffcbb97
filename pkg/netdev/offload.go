package netdev

import (
	"fmt"
	"strings"

	"github.com/safchain/ethtool"
)

// txChecksumOff makes the kernel finish checksums itself before a packet leaves on the link.
func txChecksumOff(name string) error {
	return setTXChecksum(name, func(ethtool.FeatureState) bool { return false })
}

// txChecksumOn lets the link finish them, as far as it can.
func txChecksumOn(name string) error {
	return setTXChecksum(name, func(s ethtool.FeatureState) bool { return s.Available })
}

// setTXChecksum makes each feature as want says.
func setTXChecksum(name string, want func(ethtool.FeatureState) bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool socket: %w", err)
	}
	defer e.Close()
	features, err := e.FeaturesWithState(name)
	if err != nil {
		return fmt.Errorf("read offload features of %s: %w", name, err)
	}
	change := map[string]bool{}
	for feature, state := range features {
		if to := want(state); strings.HasPrefix(feature, "tx-checksum-") && state.Active != to && !state.NeverChanged {
			change[feature] = to
		}
	}
	if len(change) == 0 {
		return nil
	}
	if err := e.Change(name, change); err != nil {
		return fmt.Errorf("switch TX checksum offload of %s: %w", name, err)
	}
	return nil
}

// TXChecksum reports whether the link leaves any kind of checksum to be finished later.
func (h Host) TXChecksum(name string) (on bool, err error) {
	err = h.do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("open ethtool socket: %w", err)
		}
		defer e.Close()
		features, err := e.Features(name)
		if err != nil {
			return fmt.Errorf("read offload features of %s: %w", name, err)
		}
		for feature, active := range features {
			on = on || active && strings.HasPrefix(feature, "tx-checksum-")
		}
		return nil
	})
	return on, err
}
