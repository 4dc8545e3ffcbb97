// Package ovnpod makes OVN's and Open vSwitch's daemons run as containers: it prepares what a daemon needs, and names the command that the container then becomes.
// Uninstaller takes from a node what all of it has left.
// Beside the databases of the central runs Watch, which keeps the raft clusters to the members that there should be, and Gates, by which administrators and members come to the southbound one.
//
// Inputs: the API's record of each cluster, the StatefulSet's replicas, the files of databases, the daemons' control sockets.
// Outputs: files of databases; ConfigMap godwit-ovn; members of the raft clusters, and their schema; by TLS, the southbound database's table Connection; of the local Open vSwitch the first row of its database.
//
// Files of databases are made, looked into and converted by ovsdb-tool: nothing else knows their format.
package ovnpod
