package boot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const (
	// apiTimeout bounds a kubelet's wait for the API server before it is reported; the supervisor then waits again.
	apiTimeout = 5 * time.Minute
	apiPoll    = 100 * time.Millisecond
)

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// containerdTOML is configuration version 2, which containerd 1.3 to 2.x read. A lab's node may not lower its processes' OOM scores, and AppArmor
// profiles would be the whole machine's.
const containerdTOML = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

// kubeletYAML has one %s, the cluster's DNS address. The API server proves itself to the kubelet by a certificate; nobody else may ask it anything.
// A container that tests kill again and again is started again within two seconds, not five minutes.
const kubeletYAML = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
containerRuntimeEndpoint: unix://` + containerdSocket + `
authentication:
  anonymous: {enabled: false}
  x509: {clientCAFile: ` + innerDir + `/secrets/` + CACert + `}
  webhook: {enabled: true}
authorization: {mode: Webhook}
makeIPTablesUtilChains: false
protectKernelDefaults: true
oomScoreAdj: 0
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: ["%s"]
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
nodeStatusUpdateFrequency: 4s
maxPods: 250
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
`

// writeConfigs writes the node's configuration. It does so at each boot: a newer lab may want another one.
func writeConfigs(spec *Spec) error {
	dns := DNSAddress(spec.ServiceCIDRs[0])
	return errors.Join(writeFile(containerdConfig, containerdTOML), writeFile(kubeletConfig, fmt.Sprintf(kubeletYAML, dns)))
}

// DNSAddress is where a cluster's DNS is in its range for Services: the tenth address, by convention.
func DNSAddress(services netip.Prefix) netip.Addr {
	dns := services.Addr()
	for range 10 {
		dns = dns.Next()
	}
	return dns
}

func writeFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make a directory for configuration: %w", err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
