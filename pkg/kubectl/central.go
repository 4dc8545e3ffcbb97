package kubectl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/raft"
)

// askTimeout bounds a question to a daemon, on the way through the API server and a kubelet.
const askTimeout = 20 * time.Second

// database is one of OVN's, as the pods of ovn-central run it (pkg/ovnpod).
type database struct {
	// name is of its schema; container has its server, control and file are paths in that container.
	name, container, control, file string
	client                         string
}

// The databases.
var (
	northbound = database{name: "OVN_Northbound", container: "nb", control: "/run/ovn/ovnnb_db.ctl", file: "/var/lib/godwit/ovn/nb.db", client: "ovn-nbctl"}
	southbound = database{name: "OVN_Southbound", container: "sb", control: "/run/ovn/ovnsb_db.ctl", file: "/var/lib/godwit/ovn/sb.db", client: "ovn-sbctl"}
)

// of is the database's container in a pod.
func (d database) of(pod *corev1.Pod) container {
	return container{pod: client.ObjectKeyFromObject(pod), name: d.container}
}

// clusterStatus is what a pod's member says of its database's cluster.
func (c cluster) clusterStatus(ctx context.Context, d database, pod *corev1.Pod) (raft.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := output(ctx, c.containers, d.of(pod), "ovs-appctl", "-t", d.control, "cluster/status", d.name)
	return raft.Parse(said), err
}

// leader is the container with the member that leads a database.
func (c cluster) leader(ctx context.Context, d database) (container, error) {
	pods, err := c.ovnPods(ctx, centralComponent, "")
	if err != nil {
		return container{}, err
	}
	var problems []error
	var seen []string
	for i := range pods {
		s, err := c.clusterStatus(ctx, d, &pods[i])
		switch {
		case err != nil:
			problems = append(problems, err)
		case s.Leads():
			return d.of(&pods[i]), nil
		default:
			seen = append(seen, fmt.Sprintf("%s is a %s", pods[i].Name, filled(s.Role)))
		}
	}
	return container{}, errors.Join(append([]error{fmt.Errorf("%s has no leader (%s): nothing can be written until more than half of its members are there (kubectl ovn db status); "+
		"-- --no-leader-only reads from one that does not lead", d.name, filled(strings.Join(seen, ", ")))}, problems...)...)
}

// member is the container with a member that answers, whether it leads or not.
func (c cluster) member(ctx context.Context, d database) (container, error) {
	pods, err := c.ovnPods(ctx, centralComponent, "")
	if err != nil {
		return container{}, err
	}
	var problems []error
	for i := range pods {
		s, err := c.clusterStatus(ctx, d, &pods[i])
		if err == nil && s.Member {
			return d.of(&pods[i]), nil
		}
		problems = append(problems, err)
	}
	return container{}, errors.Join(append([]error{fmt.Errorf("no member of %s answers: kubectl ovn db status", d.name)}, problems...)...)
}
