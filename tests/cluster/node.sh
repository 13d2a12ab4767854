#!/bin/bash
# Process 1 of a node of `cargo xtask cluster`: its mounts, then containerd, kubelet and the service proxy.
#
#     node.sh NAME FOLDER IMAGES KUBELET KUBECONFIG ADDRESSES PROXY [ARGUMENT..]
#
# tests/src/cluster/node.rs has made the namespaces that it runs in and FOLDER, with the configuration of all three. When containerd
# or kubelet ends, so does this, and with process 1 the kernel ends all others of the node.
set -euo pipefail
name=$1 folder=$2 images=$3 kubelet=$4 kubeconfig=$5 addresses=$6
shift 6

hostname "$name"
# What is mounted from here on stays in this node, and is seen by its containers.
mount --make-rprivate /
mount --make-rshared /

# The machine as this node's namespaces show it: its interfaces, its cgroup as the root, nothing pinned by others.
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mkdir /run/lock /run/netns

# Places that the programs have in their code.
for place in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers; do
	mkdir -p "$place" "$folder/state$place"
	mount --bind "$folder/state$place" "$place"
	mount --make-rshared "$place"
done

# kubelet sets these where they differ from what it wants, and they are the whole machine's. It meets files that agree with it.
mkdir -p "$folder/sysctl"
while read -r sysctl value; do
	echo "$value" >"$folder/sysctl/$sysctl"
	mount --bind "$folder/sysctl/$sysctl" "/proc/sys/${sysctl//.//}"
done <<-SYSCTLS
	vm.overcommit_memory 1
	vm.panic_on_oom 0
	kernel.panic 10
	kernel.panic_on_oops 1
	kernel.keys.root_maxkeys 1000000
	kernel.keys.root_maxbytes 25000000
SYSCTLS

containerd --config "$folder/containerd.toml" >"$folder/containerd.log" 2>&1 &
containerd=$!
until ctr version >/dev/null 2>&1; do
	kill -0 "$containerd" || { echo "containerd has ended: $folder/containerd.log" && exit 1; }
	sleep 0.1
done
ctr --namespace k8s.io images import "$images" >"$folder/import.log" 2>&1 ||
	{ echo "the images cannot be imported: $folder/import.log" && exit 1; }

"$kubelet" --config "$folder/kubelet.json" --kubeconfig "$kubeconfig" --hostname-override "$name" --node-ip "$addresses" \
	>"$folder/kubelet.log" 2>&1 &
kubelet=$!

# A service proxy that ends is started again, as a DaemonSet would.
while true; do
	"$@" >>"$folder/proxy.log" 2>&1 || true
	sleep 1
done &

wait -n "$containerd" "$kubelet" || true
echo "containerd or kubelet has ended: $folder/containerd.log, $folder/kubelet.log"
exit 1
