// Package v1alpha1 holds Godwit's API types: the custom resources, the annotations with their contents, and the finalizers.
//
// +kubebuilder:object:generate=true
// +groupName=godwit.dev
package v1alpha1
