#!/bin/sh
# Pins another Kubernetes release: ./gen.sh 1.37.1. Rewrites go.mod and go.sum beside it; `go build` of its tools checks it.
#
# k8s.io/kubernetes requires its staging modules (k8s.io/api, …) at v0.0.0 and replaces them by directories of its own repository, which a
# module that depends on it does not have. Each is therefore replaced here by its published release, whose minor and patch numbers are Kubernetes' own.
set -eu
cd "$(dirname "$0")"
version=${1:?usage: gen.sh KUBERNETES-VERSION, for example 1.37.1}
etcd=v3.7.0
plugins=v1.9.1
kubernetes=k8s.io/kubernetes
upstream=$(go mod download -json "$kubernetes@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')

rm -f go.mod go.sum
{
	echo "// The Kubernetes and etcd binaries that the lab runs. Nothing of it is linked into Godwit."
	echo "module github.com/godwit-cni/godwit/test/kube"
	echo
	grep '^go ' "$upstream"
	echo
	grep '^godebug ' "$upstream" || true
	echo
	echo "require $kubernetes v$version"
	echo
	echo "replace ("
	sed -n 's|^[[:space:]]*\(k8s\.io/[a-z-]*\) => \./staging/.*|\1|p; s|^[[:space:]]*\(k8s\.io/[a-z-]*\) v0\.0\.0$|\1|p' "$upstream" | sort -u |
		sed "s|.*|	& => & v0.${version#1.}|"
	echo ")"
} >go.mod
for command in kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet; do
	go get -tool "$kubernetes/cmd/$command@v$version"
done
go get -tool "go.etcd.io/etcd/server/v3@$etcd"
for plugin in ipam/host-local main/bridge main/loopback meta/bandwidth meta/portmap; do
	go get -tool "github.com/containernetworking/plugins/plugins/$plugin@$plugins"
done
