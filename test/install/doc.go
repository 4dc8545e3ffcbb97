// Package install holds tests of Godwit as a user installs it: OVN and Open vSwitch are pods of yamls/, nodes start with kubelet and containerd alone.
package install
