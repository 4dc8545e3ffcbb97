package topology

import (
	"errors"
	"fmt"
	"regexp"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Annotations with which Kubernetes limits a pod's bandwidth, in bits per second (k8s.io/kubernetes, pkg/util/bandwidth).
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth"
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// The bounds that Kubernetes sets for the annotations, in bits per second.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// burstShare is the part of a second's worth of traffic that may pass at once: a meter drops what is over, and TCP needs room to find its rate.
const burstShare = 4

// PodBandwidth returns the QoS rows of a pod's annotations, none when it has no limit. OVN meters on the port itself, on every datapath; the CNI plugin
// bandwidth cannot: ovs-vswitchd removes the ingress queueing discipline that it sets on the port's link. The error names the annotation that is wrong.
func PodBandwidth(namespace, pod, network string, annotations map[string]string) ([]*nbdb.QoS, error) {
	port := ident.PodPort(namespace, pod, network)
	var rows []*nbdb.QoS
	for _, d := range []struct{ annotation, direction, match string }{
		{EgressBandwidth, nbdb.QoSDirectionFromLport, fmt.Sprintf("inport == %q", port)},
		{IngressBandwidth, nbdb.QoSDirectionToLport, fmt.Sprintf("outport == %q", port)},
	} {
		text, ok := annotations[d.annotation]
		if !ok {
			continue
		}
		q, err := parseBandwidth(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q: %w: want bits per second such as 10M", d.annotation, text, err)
		}
		bits := q.Value()
		if bits < minBandwidth || bits > maxBandwidth {
			return nil, fmt.Errorf("annotation %s: %s: want between 1k and 1P bits per second", d.annotation, text)
		}
		kbps := min(int(bits/1000), 1<<32-1) // the column's range
		rows = append(rows, &nbdb.QoS{
			Priority: 1, Direction: d.direction, Match: d.match,
			Bandwidth: map[string]int{nbdb.QoSBandwidthRate: kbps, nbdb.QoSBandwidthBurst: max(kbps/burstShare, 100)},
			ExternalIDs: map[string]string{
				ident.OwnerKey: ident.OwnerPod, ident.KeyNamespace: namespace, ident.KeyName: pod,
			},
		})
	}
	return rows, nil
}

// plainQuantity is a quantity without an exponent. Anybody may write a pod's annotations, and resource.ParseQuantity computes for hours, and in gigabytes, at
// "1e-2000000000".
var plainQuantity = regexp.MustCompile(`^[0-9]{1,16}(\.[0-9]{1,9})?(k|Ki|[MGTP]i?)?$`)

func parseBandwidth(text string) (resource.Quantity, error) {
	if !plainQuantity.MatchString(text) {
		return resource.Quantity{}, errors.New("not a number with one of the suffixes k, M, G, T, P, Ki, Mi, Gi, Ti, Pi, or none")
	}
	return resource.ParseQuantity(text)
}
