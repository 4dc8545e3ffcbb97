package v1alpha1

// Names of what OVN's certificates are kept in.
const (
	// OVNSigner signs the certificates of nodes, in CertificateSigningRequests.
	OVNSigner = "godwit.dev/ovn-node"
	// OVNAuthorities is a ConfigMap with the authorities that nodes are to trust; they are no secret.
	OVNAuthorities = "godwit-ovn-ca"
)
