package kubevirt

import _ "embed"

// Manifests of the stand-in. Apply them in this order.
var (
	//go:embed manifests/crds.yaml
	definitions string
	//go:embed manifests/rbac.yaml
	roles string
	//go:embed manifests/admission.yaml
	admission string
)

// User is whom the stand-in is to be for the API server; its rights are among the manifests.
const User = "system:kubevirt-stand-in"

// Manifests are KubeVirt's definitions, what the stand-in may do, and what KubeVirt's webhooks do to new objects: YAML, to be applied in this order.
func Manifests() []string { return []string{definitions, roles, admission} }
