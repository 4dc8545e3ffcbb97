// Command godwit-controller turns Kubernetes objects into rows of the OVN northbound database.
package main

import (
	"os"

	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run()) }

func run() int {
	if err := command().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		return 1 // cobra has printed it
	}
	return 0
}
