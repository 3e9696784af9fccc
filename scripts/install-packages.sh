#!/usr/bin/env bash
# Installs from Debian what Podman Swarm needs to be built, run and tested, and says nothing if all is there.
set -euo pipefail

declare -A packages=(
    [podman]=podman [runc]=runc [catatonit]=catatonit [netavark]=netavark
    [ip]=iproute2 [nft]=nftables [iptables]=iptables [dig]=dnsutils [cmake]=cmake [gcc]=gcc [curl]=curl [git]=git [busybox]=busybox-static
    [newuidmap]=uidmap [nsenter]=util-linux [make]=make [age]=age [strace]=strace
)
# Programs that are not on everybody's PATH.
declare -A places=([netavark]=/usr/lib/podman/netavark [catatonit]=/usr/bin/catatonit)

missing=()
export PATH="$PATH:/usr/sbin:/sbin"
for program in "${!packages[@]}"; do
    command -v "$program" >/dev/null || [[ -x ${places[$program]:-} ]] || missing+=("${packages[$program]}")
done
# Linking statically needs the C library's archive.
[[ -e /usr/lib/x86_64-linux-gnu/libc.a || -e /usr/lib/aarch64-linux-gnu/libc.a ]] || missing+=(libc6-dev)
# The Python client of the tests comes from PyPI, into a virtual environment.
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
# The peer of the benchmarks, and what counts syncs. (Where Debian starts an etcd of its own: systemctl disable --now etcd.)
if [[ ${1:-} == --with-benches ]]; then
    packages=([etcd]=etcd-server [etcdctl]=etcd-client [strace]=strace)
    for program in "${!packages[@]}"; do
        command -v "$program" >/dev/null || missing+=("${packages[$program]}")
    done
fi
[[ ${1:-} == --with-kubectl ]] && ! command -v kubectl >/dev/null && missing+=(kubernetes-client)

if ((${#missing[@]} == 0)); then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "install-packages: this is not Debian; install by hand: ${missing[*]}" >&2
    exit 1
fi
sudo=()
((EUID == 0)) || sudo=(sudo)
echo "installing from Debian, which can take some minutes: ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
