// Package pod is the part of a launcher pod that belongs to the launcher: its container, volumes, and where its directory is on the node.
package pod

import (
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// Image has QEMU, the guest and the launcher; every node of a lab has it.
const Image = "docker.io/godwitcni/lab-launcher:1"

// Container is the name of the launcher's container, which is KubeVirt's.
const Container = "compute"

const (
	volume    = "launcher"
	directory = "/run/launcher"
	// monitorVolume is where KubeVirt's launchers have libvirt's socket, and these one of QEMU's.
	monitorVolume    = "libvirt-runtime"
	monitorDirectory = "/run/libvirt"
	// milliCPU is what KubeVirt asks for a VM with one processor. A pod that asks for none has so little weight that a busy agent beside it stops the guest.
	milliCPU = 100
	// overheadMiB is QEMU's own memory, the translated code of the guest above all, and the launcher's.
	overheadMiB = 160
)

// Add adds the launcher to a pod. memoryMiB is the guest's memory, guest.DefaultMemoryMiB when zero. The pod needs restartPolicy Never, and a grace period
// long enough for the guest to shut down: the launcher presses its power button when asked to end.
func Add(spec *corev1.PodSpec, memoryMiB int) {
	if memoryMiB == 0 {
		memoryMiB = guest.DefaultMemoryMiB
	}
	privileged := true
	for _, name := range []string{volume, monitorVolume} {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	}
	spec.Containers = append(spec.Containers, corev1.Container{
		Name: Container, Image: Image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"/usr/bin/launcher", "--dir", directory, "--monitor-dir", monitorDirectory},
		SecurityContext: &corev1.SecurityContext{Privileged: &privileged},
		VolumeMounts:    []corev1.VolumeMount{{Name: volume, MountPath: directory}, {Name: monitorVolume, MountPath: monitorDirectory}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewMilliQuantity(milliCPU, resource.DecimalSI),
			corev1.ResourceMemory: *resource.NewQuantity(int64(memoryMiB+overheadMiB)<<20, resource.BinarySI),
		}},
	})
}

// Dir is the directory of a pod's launcher, for guest.Dial and guest.NewRelay. nodeVar is the node's /var as seen by the caller. It exists once the kubelet has
// made the pod's volumes, and until the pod is deleted.
func Dir(nodeVar string, uid types.UID) string {
	return filepath.Join(nodeVar, "lib/kubelet/pods", string(uid), "volumes/kubernetes.io~empty-dir", volume)
}
