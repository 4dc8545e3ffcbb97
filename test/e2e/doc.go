// Package e2e tests Godwit end to end in the lab: real kubelets, real OVN, installed by its own manifests. The lab is brought up by the first test that runs
// and removed at the end, unless it was there before: `make lab-up` once, then `make e2e RUN=TestPod` as often as you like.
package e2e
