#!/usr/bin/env bash
# cluster.sh - N pretend machines, each with its own real Podman engine, on one Linux machine.
#
#   cluster.sh up N          make hosts ps1..psN (or add what is missing); prints one line per host
#   cluster.sh down          remove every host and everything it ran
#   cluster.sh exec I CMD..  run CMD on host I as root (I=0: on the LAN itself, an operator's desk)
#   cluster.sh cut I         cut host I off from everybody, silently (frames are dropped)
#   cluster.sh cut I J       cut only the path between I and J, both ways
#   cluster.sh oneway I J    drop only what I sends to J (an asymmetric fault)
#   cluster.sh heal [I [J]]  undo: everything / all faults of I / the faults between I and J
#   cluster.sh unplug I      pull host I's cable (its eth0 loses carrier); plug I puts it back
#   cluster.sh crash I       power host I off: every process on it gets SIGKILL, its disk stays
#   cluster.sh boot I        power it on again (memory and /run are empty, disk as it was)
#   cluster.sh sock I        print the path, valid outside too, of host I's Podman REST socket
#   cluster.sh status        per host: state, running containers, processes, memory (PSS)
#
# What a host is: one set of kernel namespaces (network, mount, pid, uts, ipc) whose pid 1 supervises
# `podman system service`. Inside it everything is where it is on a real machine: plain `podman`
# needs no flags, the socket is /run/podman/podman.sock, eth0 has 10.231.0.I/24, the hostname is psI.
# Nothing is shared with the machine's own Podman: private /run (network state, address leases, DNS
# server), private /dev/shm (Podman's lock table), private image store, private /etc/containers
# (a copy of the machine's, plus a drop-in). The file system is otherwise the machine's own, so a
# program built outside can be run inside by its path. Hosts share one LAN, a bridge in a namespace
# of its own (`pssw`), and reach nothing else: no route leads out and none leads in.
#
# Needs root and podman, iproute2, nftables, util-linux, curl. Variables:
#   PS_NAME       the cluster's name (default: ps); hosts are then NAME1.. and the LAN is NAMEsw. Clusters
#                 of different names live side by side, with the same addresses, and cannot see each other
#   PS_DIR        working directory, one per cluster      (default: $TMPDIR or /tmp, /cluster-NAME);
#                 not under /run or /dev/shm, which every host has for itself
#   PS_IMAGES     images copied from the caller's own Podman store to every host
#                                                         (default: localhost/busybox:test)
#   PS_IMAGE_TAR  load this archive instead (podman save -m -o FILE IMAGE...)
#   PS_ROUTES=1   also give each host routes to the others' container subnets (see below)
#   PS_WARM=0     do not build Podman's pod pause image beforehand
#
# Container subnets differ per host, so they can be routed: the default network is 10.(100+I).0.0/24
# and `podman network create` takes the next /24 of 10.(100+I).0.0/16. Hence at most 99 hosts.
#
# A test that runs a long-lived program on a host: `cluster.sh exec 1 prog &`. Killing that job (any
# signal) sends SIGTERM to prog. To kill prog itself hard: `cluster.sh exec 1 kill -9 PID`.

set -Eeuo pipefail
export LC_ALL=C

PS_NAME=${PS_NAME:-ps}
PS_DIR=$(realpath -m "${PS_DIR:-${TMPDIR:-/tmp}/cluster-$PS_NAME}")
PS_IMAGES=${PS_IMAGES-localhost/busybox:test}
PS_IMAGE_TAR=${PS_IMAGE_TAR:-}
PS_ROUTES=${PS_ROUTES:-0}
PS_WARM=${PS_WARM:-1}
SW=${PS_NAME}sw                             # the namespace that holds the LAN's bridge
SELF=$(realpath "${BASH_SOURCE[0]}")

die()  { echo "cluster.sh: $*" >&2; exit 1; }
dir()  { echo "$PS_DIR/$PS_NAME$1"; }
host() { echo "$PS_NAME$1"; }
isnum() { [[ ${1:-} =~ ^[0-9]+$ ]] && (( $1 >= 1 && $1 <= 99 )); }
need() { isnum "${1:-}" || die "not a host number: '${1:-}'"; [[ -d $(dir "$1") ]] || die "no host $(host "$1")"; }
hosts() { local d; for d in "$PS_DIR/$PS_NAME"[0-9]*; do [[ -d $d ]] && echo "${d##*/"$PS_NAME"}"; done | sort -n; }

# The pid (as seen out here) of host I's pid 1, if it is really that: a stale pid file must never
# make us enter or kill a stranger, so the network namespace has to be the host's own.
initpid() {
    local p; p=$(cat "$(dir "$1")/init.pid" 2>/dev/null) || return 1
    [[ -n $p && -e /proc/$p/ns/net && -e /run/netns/$(host "$1") ]] || return 1
    [[ $(stat -Lc %i "/proc/$p/ns/net") == $(stat -Lc %i "/run/netns/$(host "$1")") ]] && echo "$p"
}

# Run a command in host I. The shell in between restores the working directory; setpriv ties the
# command's life to ours.
# shellcheck disable=SC2016
enter() {
    local i=$1 p; shift
    p=$(initpid "$i") || die "$(host "$i") is not running"
    exec env -u CONTAINER_HOST -u CONTAINERS_CONF -u CONTAINERS_STORAGE_CONF -u XDG_RUNTIME_DIR -u DOCKER_HOST \
        nsenter -t "$p" -m -u -i -n -p -- setpriv --pdeathsig TERM \
        sh -c 'cd "$1" 2>/dev/null; shift; exec "$@"' sh "$PWD" "$@"
}

# ---------------------------------------------------------------- the LAN

ns_ok()  { ip -n "$1" link show lo >/dev/null 2>&1; }     # a file in /run/netns may also be a stale one
ns_add() { ip netns del "$1" 2>/dev/null || true; ip netns add "$1"; }
# Beside other clusters that come and go, a first attempt may find the name busy or mounted twice.
ns_del() { local _; for _ in 1 2 3 4 5; do ip netns del "$1" 2>/dev/null || true; [[ -e /run/netns/$1 ]] || return 0; sleep 0.1; done; }

lan_up() {
    if ns_ok "$SW"; then return 0; fi
    touch "$PS_DIR/lan"
    ns_add "$SW"
    ip -n "$SW" link set lo up
    ip -n "$SW" link add br0 type bridge forward_delay 0 mcast_snooping 0
    ip -n "$SW" addr add 10.231.0.254/24 dev br0
    ip -n "$SW" link set br0 up
    # Bridged frames must not pass this namespace's IP firewall too (absent where br_netfilter is).
    nsenter --net="/run/netns/$SW" sh -c 'echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables' 2>/dev/null || true
    nsenter --net="/run/netns/$SW" nft -f - <<'NFT'
table bridge ps {
    set off   { type ifname; }
    set pairs { type ifname . ifname; }
    chain from_host { type filter hook prerouting priority 0; iifname @off drop; }
    chain between { type filter hook forward priority 0; oifname @off drop; iifname . oifname @pairs drop; }
    chain from_desk { type filter hook output priority 0; oifname @off drop; }
}
NFT
}

nft_sw() { nsenter --net="/run/netns/$SW" nft "$@"; }
q()      { echo "\"$(host "$1")\""; }
fault()  { nft_sw "$1" element bridge ps "$2" "{ $3 }" 2>/dev/null || [[ $1 == delete ]]; }

net_up() {                                  # host I's network namespace and cable, always fresh
    local i=$1 n; n=$(host "$1")
    ip -n "$SW" link del "$n" 2>/dev/null || true
    ns_add "$n"
    # A fixed hardware address, as a real card has: else the others' ARP caches point nowhere after a reboot.
    ip -n "$SW" link add "$n" type veth peer name eth0 netns "$n" address "02:00:0a:e7:00:$(printf %02x "$i")"
    ip -n "$SW" link set "$n" master br0 up
    ip -n "$n" link set lo up
    ip -n "$n" link set eth0 up
    ip -n "$n" addr add "10.231.0.$i/24" dev eth0
    nsenter --net="/run/netns/$n" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
}

routes() {                                  # plain routes to every other host's container subnets
    local i j
    for i in $(hosts); do for j in $(hosts); do
        [[ $i == "$j" ]] || ip -n "$(host "$i")" route replace 10.$((100 + j)).0.0/16 via "10.231.0.$j"
    done; done
}

# ---------------------------------------------------------------- one host

# Runs inside the new namespaces, first as set-up, then as the host's pid 1 for good.
host_main() {
    local i=$1 d outer; d=$(dir "$i")
    read -r outer _ < /proc/self/stat        # /proc is still the outer one: our pid out there
    mount -t proc proc /proc
    # A sysfs of this network namespace (/sys/class/net), with the machine's cgroups put back.
    if [[ -d /sys/fs/cgroup ]]; then
        mount --rbind /sys/fs/cgroup "$d/cg"
        mount -t sysfs sysfs /sys
        mount --rbind "$d/cg" /sys/fs/cgroup
        umount -l "$d/cg"
    fi
    mount -t tmpfs -o mode=1777,size=64m tmpfs /dev/shm
    mount -t tmpfs -o mode=755,size=256m tmpfs /run
    mkdir -p /run/lock /run/podman /run/netns
    mount --bind "$d/sock" /run/podman
    mount --bind "$d/lib" /var/lib/containers
    mount --bind "$d/etc" /etc/containers
    hostname "$(host "$i")"
    rm -f /run/podman/podman.sock
    echo "$outer" > "$d/init.pid.new"; mv "$d/init.pid.new" "$d/init.pid"
    # pid 1: keep the engine's service up (as a socket unit would), reap every orphan.
    trap : TERM INT HUP
    while :; do
        podman system service -t 0 unix:///run/podman/podman.sock || true
        sleep 1
    done
}

host_conf() {
    local i=$1 d; d=$(dir "$i")
    mkdir -p "$d/lib" "$d/sock" "$d/cg" /var/lib/containers /etc/containers
    [[ -d $d/etc ]] && return 0
    mkdir "$d/etc.new"
    # The machine's own settings (runtime, limits, signature policy) hold in the hosts too.
    cp -a /etc/containers/. "$d/etc.new/"
    rm -rf "$d/etc.new/networks" "$d/etc.new/storage.conf"
    mkdir -p "$d/etc.new/containers.conf.d"
    cat > "$d/etc.new/containers.conf.d/90-cluster.conf" <<CONF
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
exit_command_delay = 1
[network]
network_backend = "netavark"
default_subnet = "10.$((100 + i)).0.0/24"
default_subnet_pools = [{"base" = "10.$((100 + i)).0.0/16", "size" = 24}]
CONF
    # Machines that allow fewer open files than Podman asks for, or whose control groups crun refuses.
    if (( $(ulimit -Hn) < 1048576 )); then
        sed -i "s/^log_driver.*/&\ndefault_ulimits = [\"nofile=$(ulimit -Hn):$(ulimit -Hn)\", \"nproc=4096:4096\"]/" "$d/etc.new/containers.conf.d/90-cluster.conf"
    fi
    if [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]] && command -v runc >/dev/null; then
        sed -i 's/^cgroup_manager.*/&\nruntime = "runc"/' "$d/etc.new/containers.conf.d/90-cluster.conf"
    fi
    cat > "$d/etc.new/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
CONF
    mv "$d/etc.new" "$d/etc"
}

host_boot() {
    local i=$1 d t; d=$(dir "$i")
    if initpid "$i" >/dev/null; then return 0; fi
    net_up "$i"
    rm -f "$d/init.pid"
    # fd 9 is our lock: a daemon that inherited it would hold the lock for ever.
    env -i PATH="$PATH" HOME=/root PS_DIR="$PS_DIR" PS_NAME="$PS_NAME" \
        setsid nsenter --net="/run/netns/$(host "$i")" \
        unshare --mount --propagation private --uts --ipc --pid --fork \
        bash "$SELF" __host "$i" >> "$d/host.log" 2>&1 < /dev/null 9>&- &
    for ((t = 0; t < 300; t++)); do
        if curl -sf --max-time 5 --unix-socket "$d/sock/podman.sock" http://d/_ping >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "cluster.sh: $(host "$i") did not come up; the end of its log:" >&2
    return 1
}

host_fill() {                               # the images, once per disk
    local i=$1 d; d=$(dir "$i")
    [[ -e $d/filled ]] && return 0
    if [[ -s $PS_DIR/images.tar ]]; then
        (enter "$i" podman load -q -i "$PS_DIR/images.tar") >> "$d/host.log" 2>&1
    fi
    if [[ $PS_WARM == 1 ]]; then             # the first pod on a host builds Podman's pause image
        (enter "$i" sh -c 'podman pod create --name ps-warm && podman pod rm -f ps-warm') >> "$d/host.log" 2>&1
    fi
    touch "$d/filled"
}

host_up() { host_conf "$1"; host_boot "$1"; host_fill "$1"; }

host_kill() {                               # SIGKILL pid 1: the kernel kills the whole pid namespace
    local i=$1 p
    p=$(initpid "$i") || return 0
    kill -9 "$p" 2>/dev/null || true
    while [[ -e /proc/$p/ns/net ]]; do sleep 0.02; done    # gone only after all its processes are
    rm -f "$(dir "$i")/init.pid"
}

host_rm() {
    local i=$1 d id g p; d=$(dir "$i")
    host_kill "$i"
    for p in $(ip netns pids "$(host "$i")" 2>/dev/null); do kill -9 "$p" 2>/dev/null || true; done    # half-begun hosts
    # Control groups outlive their processes; remove those of this host's containers and pods only.
    if compgen -G "$d/lib/storage/overlay-containers/*/" >/dev/null; then
        for g in "$d"/lib/storage/overlay-containers/*/; do
            id=$(basename "$g")
            # find fails where others' groups vanish while it looks: what follows must be done all the same.
            { find /sys/fs/cgroup -depth -type d -name "*$id*" 2>/dev/null || true; } | while read -r g; do
                rmdir "$g" 2>/dev/null || true
                [[ $(basename "$(dirname "$g")") == libpod_parent ]] || rmdir "$(dirname "$g")" 2>/dev/null || true
            done
        done
    fi
    ns_del "$(host "$i")"
    ip -n "$SW" link del "$(host "$i")" 2>/dev/null || true
    fault delete off "$(q "$i")"
    rm -rf "$d"
}

# ---------------------------------------------------------------- commands

locked() {                                  # one up/down/boot/crash at a time
    mkdir -p "$PS_DIR"
    exec 9> "$PS_DIR/lock"
    flock -w 120 9 || die "another cluster.sh holds $PS_DIR/lock"
}

MADE=() MADE_TAR=0                          # what this `up` began and must take back if it fails
undo() {
    local i
    trap - EXIT ERR INT TERM
    set +e
    for i in $(jobs -p); do kill -9 "$i" 2>/dev/null; done; wait 2>/dev/null
    for i in "${MADE[@]}"; do host_rm "$i"; done
    if (( MADE_TAR )); then rm -f "$PS_DIR/images.tar" "$PS_DIR/images.new"; fi
    if [[ -z $(hosts) ]]; then ns_del "$SW"; rm -rf "$PS_DIR"; fi
    echo "cluster.sh: up failed; the hosts it had begun were removed" >&2
    exit 1
}

cmd_up() {
    local n=${1:-} i jobs=() bad=0
    isnum "$n" || die "up N, with N from 1 to 99"
    locked
    if ns_ok "$SW" && [[ ! -e $PS_DIR/lan ]]; then
        die "a cluster '$PS_NAME' exists already, with another PS_DIR; take another PS_NAME, or down it"
    fi
    for ((i = 1; i <= n; i++)); do [[ -d $(dir "$i") ]] || MADE+=("$i"); done
    trap undo EXIT; trap 'exit 1' INT TERM HUP
    lan_up
    if [[ ! -e $PS_DIR/images.tar && -n $PS_IMAGE_TAR$PS_IMAGES ]]; then    # once, at the cluster's first `up`
        MADE_TAR=1
        rm -f "$PS_DIR/images.new"
        if [[ -n $PS_IMAGE_TAR ]]; then cp "$PS_IMAGE_TAR" "$PS_DIR/images.new"; fi
        # shellcheck disable=SC2086
        if [[ -z $PS_IMAGE_TAR ]]; then podman save -q -m -o "$PS_DIR/images.new" $PS_IMAGES 9>&-; fi
        mv "$PS_DIR/images.new" "$PS_DIR/images.tar"
    fi
    for ((i = 1; i <= n; i++)); do
        ( trap - ERR; trap '(( $? == 0 )) || tail -n 5 "$(dir "$i")/host.log" >&2' EXIT; host_up "$i" ) & jobs+=($!)
    done
    for i in "${jobs[@]}"; do wait "$i" || bad=1; done
    (( ! bad )) || exit 1
    if [[ $PS_ROUTES == 1 ]]; then routes; fi
    trap - EXIT INT TERM HUP
    for i in $(hosts); do echo "$(host "$i") 10.231.0.$i $(cmd_sock "$i")"; done
}

cmd_down() {
    local i
    locked
    # By name, not only by directory: what is left of a cluster whose directory was deleted goes too.
    for i in $(hosts; ip netns list 2>/dev/null | sed -nE "s/^$PS_NAME([0-9]+)( .*)?$/\1/p"); do echo "$i"; done | sort -nu > "$PS_DIR/doomed"
    while read -r i; do host_rm "$i" & done < "$PS_DIR/doomed"; wait
    ns_del "$SW"
    rm -rf "$PS_DIR"
}

cmd_exec() {
    local i=${1:-}; [[ $# -ge 2 ]] || die "exec I CMD..."
    shift
    if [[ $i == 0 ]]; then exec nsenter --net="/run/netns/$SW" "$@"; fi
    need "$i"; enter "$i" "$@"
}

cmd_cut() {
    need "${1:-}"
    if [[ $# -ge 2 ]]; then need "$2"; fault add pairs "$(q "$1") . $(q "$2"), $(q "$2") . $(q "$1")"
    else fault add off "$(q "$1")"; fi
}

cmd_oneway() { need "${1:-}"; need "${2:-}"; fault add pairs "$(q "$1") . $(q "$2")"; }

cmd_heal() {
    local j
    if [[ $# -eq 0 ]]; then
        nft_sw flush set bridge ps off; nft_sw flush set bridge ps pairs
        for j in $(hosts); do cmd_plug "$j"; done
        return
    fi
    need "$1"
    if [[ $# -eq 1 ]]; then
        fault delete off "$(q "$1")"; cmd_plug "$1"
        for j in $(hosts); do [[ $j == "$1" ]] || cmd_heal "$1" "$j"; done
    else
        need "$2"
        fault delete pairs "$(q "$1") . $(q "$2")"; fault delete pairs "$(q "$2") . $(q "$1")"
    fi
}

cmd_unplug() { need "${1:-}"; ip -n "$SW" link set "$(host "$1")" down; }
cmd_plug()   { need "${1:-}"; ip -n "$SW" link set "$(host "$1")" up 2>/dev/null || true; }    # off: no cable
cmd_crash()  {                              # the cable goes first: a dead machine sends no FIN or RST
    need "${1:-}"; locked
    ip -n "$SW" link del "$(host "$1")" 2>/dev/null || true
    host_kill "$1"
}
cmd_boot()   { need "${1:-}"; locked; host_up "$1"; if [[ $PS_ROUTES == 1 ]]; then routes; fi; }
cmd_sock()   { need "${1:-}"; echo "$(dir "$1")/sock/podman.sock"; }

cmd_status() {
    local i p ns
    for i in $(hosts); do
        if p=$(initpid "$i"); then
            ns=$(stat -Lc %i "/proc/$p/ns/pid")
            # PSS shares each common page out among its users, so the hosts' figures can be added up.
            # shellcheck disable=SC2046
            awk -v h="$(host "$i")" -v c="$( (enter "$i" podman ps -q) | wc -l)" -v f="$(off "$i")" '
                FILENAME ~ /smaps_rollup$/ && /^Pss:/ { k += $2; n++ }
                END { printf "%s up%s, %d containers running, %d processes, %.1f MiB\n", h, f, c, n, k / 1024 }' \
                /dev/null $(for q in /proc/[0-9]*; do
                    [[ $(stat -Lc %i "$q/ns/pid" 2>/dev/null) == "$ns" ]] && [[ -r $q/smaps_rollup ]] && echo "$q/smaps_rollup"; done) 2>/dev/null || true
        else echo "$(host "$i") off"; fi
    done
}
off() { if nft_sw list set bridge ps off | grep -q "$(q "$1")"; then echo " (cut)"; fi; }

[[ $EUID == 0 ]] || die "must be root"
[[ $PS_NAME =~ ^[a-z][a-z-]{0,11}$ && $PS_NAME != *sw ]] || die "PS_NAME: 1 to 12 small letters or '-', not ending in sw"
cmd=${1:-}; shift || true
case $cmd in
    up|down|exec|cut|oneway|heal|unplug|plug|crash|boot|sock|status) "cmd_$cmd" "$@" ;;
    __host) host_main "$@" ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$SELF"; exit 2 ;;
esac
