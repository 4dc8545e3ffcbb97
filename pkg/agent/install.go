package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/wire"
)

const (
	confName = ident.ConfigurationFile
	// networkName is the name of the network configuration.
	networkName = "godwit"
	// cniVersion is what the runtime speaks with every plugin of the list. No later one is offered (cniVersions): from 1.1.0 on runtimes ask for STATUS every few seconds, and the
	// kubelet calls a node NotReady whose agent is away for an update, which moves gateways and evicts what runs; and a chained plugin need not know it, which fails every ADD.
	cniVersion = "1.0.0"
)

// installer puts the CNI plugin and its configuration on the node.
//
// Outputs: CNIBinDir/godwit, CNIConfDir/05-godwit.conflist. The configuration is the last thing that the agent writes: from then on the kubelet
// calls the node ready and starts pods.
type installer struct {
	cfg Config
}

// install reports what it changed, and which chained plugins it left out for want of their binary.
func (i *installer) install() (changed, missing []string, err error) {
	bin := filepath.Join(i.cfg.CNIBinDir, wire.PluginName)
	program, err := os.ReadFile(i.cfg.CNIBinSource)
	if err != nil {
		return nil, nil, fmt.Errorf("read CNI plugin: %w", err)
	}
	wrote, err := replaceFile(bin, program, 0o755)
	if err != nil {
		return nil, nil, fmt.Errorf("install CNI plugin: %w", err)
	}
	if wrote {
		changed = append(changed, bin)
	}
	conf, missing, err := i.conflist()
	if err != nil {
		return changed, nil, err
	}
	path := filepath.Join(i.cfg.CNIConfDir, confName)
	wrote, err = replaceFile(path, conf, 0o644)
	if err != nil {
		return changed, missing, fmt.Errorf("install CNI configuration: %w", err)
	}
	if wrote {
		changed = append(changed, path)
	}
	return changed, missing, nil
}

// conflist is the network configuration list. A chained plugin whose binary the node lacks is left out: the runtime would fail every pod for it.
func (i *installer) conflist() (conf []byte, missing []string, err error) {
	plugins := []map[string]any{{"type": wire.PluginName, "socket": i.cfg.CNISocket}}
	for _, chained := range []struct{ name, capability string }{{"portmap", "portMappings"}} {
		_, err := os.Stat(filepath.Join(i.cfg.CNIBinDir, chained.name))
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, chained.name)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look for CNI plugin %s: %w", chained.name, err)
		}
		plugins = append(plugins, map[string]any{"type": chained.name, "capabilities": map[string]bool{chained.capability: true}})
	}
	conf, err = json.MarshalIndent(map[string]any{
		"cniVersion": cniVersion, "name": networkName, "plugins": plugins,
	}, "", "  ")
	if err != nil {
		return nil, nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(conf, '\n'), missing, nil
}

// replaceFile makes path have the contents and mode, by renaming a finished file over it: the runtime never sees half of one, and a plugin that
// runs keeps its own. It reports whether it wrote.
func replaceFile(path string, contents []byte, mode fs.FileMode) (wrote bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, contents) {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() == mode {
			return false, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("make directory: %w", err)
	}
	// A name that no runtime takes for a configuration or a plugin.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := writeSynced(tmp, contents, mode); err != nil {
		return false, errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return false, errors.Join(fmt.Errorf("move into place: %w", err), os.Remove(tmp))
	}
	return true, nil
}

func writeSynced(path string, contents []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, err = f.Write(contents)
	// The umask may have taken bits of the mode; a crash must not leave the new name with no contents.
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
