package ident

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// PluginName is the CNI plugin's name in a configuration ("type"), and so its file's name in the runtime's directory.
const PluginName = "godwit"

// ConfigurationFile is the CNI configuration's, in the runtime's directory. It sorts before the configurations that distributions leave behind: the runtime takes the first.
const ConfigurationFile = "05-godwit.conflist"

// PodAlias begins the alias of the host's side of a pod's veth; the UID of the pod that it was made for follows, and more that is pkg/agent's.
const PodAlias = "godwit pod "

// FirstInterface is a pod's interface on the default network: every runtime of Kubernetes calls it so. Others are those of NetworkAttachmentDefinitions.
const FirstInterface = "eth0"

// maxInterface is how many characters the kernel allows in the name of a link.
const maxInterface = 15

// ValidInterface says whether a link can have the name. One that it accepts has no slash, so that row names made of it are unambiguous.
func ValidInterface(name string) bool {
	return name != "" && len(name) <= maxInterface && !strings.ContainsAny(name, "/: \t\n\v\f\r") && name != "." && name != ".."
}

// LauncherInterface is the name of a launcher pod's interface on a secondary network of its VMI: "pod" and the first 11 digits of the SHA-256 of the network's name
// (KubeVirt pkg/network/namescheme, GenerateHashedInterfaceName).
func LauncherInterface(network string) string {
	sum := sha256.Sum256([]byte(network))
	return "pod" + hex.EncodeToString(sum[:])[:11]
}
