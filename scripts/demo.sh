#!/usr/bin/env bash
# The main job of Podman Swarm, shown on this machine's own Podman: one node, an example, a name, a way in.
#
# Stays up until interrupted and then removes what it started. ONESHOT=1: stops by itself, exits non-zero if a step
# failed. What an earlier run that was killed left behind is removed first.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
ONESHOT=${ONESHOT:-}
state=/run/podman-swarm-demo                # below a folder in which only root makes anything

say()  { printf '%s\n' "$*"; }
step() { if [[ -t 1 ]]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- as the user: build; as root: the rest
if [[ -z ${DEMO_BUILT:-} ]]; then
    step "Installing what is missing, and building"
    scripts/install-packages.sh
    cargo build --locked --release
    hello=$(scripts/build-hello.sh)
    bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
    if ((EUID != 0)); then
        say "The demo makes network namespaces and containers as root; sudo may ask for your password."
        exec sudo env DEMO_BUILT=1 DEMO_HELLO="$hello" DEMO_BIN="$bin" ONESHOT="$ONESHOT" "$0"
    fi
    export DEMO_BUILT=1 DEMO_HELLO="$hello" DEMO_BIN="$bin"
fi
export PATH="$PATH:/usr/sbin:/sbin"
agent=$DEMO_BIN/podman-swarm-agent psctl=$DEMO_BIN/psctl
image=localhost/podman-swarm-hello:1

# ---------------------------------------------------------------- taking down
agent_pid="" service_pid="" socket=unix:///run/podman/podman.sock
answers() { [[ -S $1 ]] && curl -sf -m 5 --unix-socket "$1" http://d/_ping >/dev/null; }   # is Podman there?
running() { [[ -n $1 && -e /proc/$1/exe && $(readlink "/proc/$1/exe") == "$2"* ]]; }
settled() {                                 # a child of ours is this shell until it has become the agent
    while jobs -rp | grep -qx "${agent_pid:-none}" && ! running "$agent_pid" "$agent"; do sleep 0.01; done
}
down() {
    trap - EXIT
    trap '' INT TERM HUP                    # a second Ctrl-C would leave half of it behind
    set +e
    [[ -f $state/agent.pid ]] && agent_pid=$(<"$state/agent.pid")
    [[ -f $state/service.pid ]] && service_pid=$(<"$state/service.pid")
    [[ -f $state/socket ]] && socket=$(<"$state/socket")
    settled
    if [[ -d $state/data ]] || running "$agent_pid" "$agent"; then
        if ! running "$agent_pid" "$agent"; then    # killed: it must run to take back what it made
            answers "${socket#unix://}" || start_podman
            start_agent
        fi
        wait_healthy                        # its start makes what `leave` needs
        if ! "$agent" --data-dir="$state/data" leave >>"$state/agent.log" 2>&1; then
            tail -n 5 "$state/agent.log" >&2
            say "demo: not everything could be removed; run it again to try once more (its state is in $state)" >&2
            exit 1
        fi
        for _ in {1..100}; do running "$agent_pid" "$agent" || break; sleep 0.1; done
        running "$agent_pid" "$agent" && kill -9 "$agent_pid"
    fi
    podman image rm -f "$image" >/dev/null 2>&1
    [[ -n $service_pid ]] && running "$service_pid" "$(command -v podman)" && kill "$service_pid"
    rm -rf "$state"
}

# ---------------------------------------------------------------- putting up
start_podman() {
    if answers /run/podman/podman.sock; then return; fi
    if [[ -d /run/systemd/system ]]; then
        systemctl start podman.socket
        return
    fi
    # No systemd here (a container, a build machine): a service of our own, for as long as the demo lasts.
    local conf="$state/containers.conf"
    : > "$conf"
    if (( $(ulimit -Hn) < 1048576 )); then
        # Podman asks for more files and processes than this machine allows anybody.
        printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=4096:4096"]\n' "$(ulimit -Hn)" "$(ulimit -Hn)" >> "$conf"
    fi
    printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nexit_command_delay = 1\n' >> "$conf"
    if [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]]; then printf 'runtime = "runc"\n' >> "$conf"; fi
    socket=unix://$state/podman.sock
    CONTAINERS_CONF=$conf setsid podman system service -t 0 "$socket" >"$state/podman.log" 2>&1 {lock}<&- &
    service_pid=$!
    echo "$service_pid" > "$state/service.pid"; echo "$socket" > "$state/socket"
    for _ in {1..100}; do
        answers "${socket#unix://}" && return
        sleep 0.1
    done
    fail "Podman's service did not start: $(tail -n 3 "$state/podman.log")"
}

free_port() {                               # the first of the given ports that nobody listens on
    local port
    for port in "$@"; do
        if ! ss -Hltun "sport = :$port" | grep -q .; then echo "$port"; return; fi
    done
    fail "none of the ports $* is free"
}

start_agent() {
    [[ -f $state/ports ]] || echo "$(free_port 8080 18080 28080) $(free_port 80 8088 18088) $(free_port 53 5353 15353) $(free_port 7946 17946)" > "$state/ports"
    read -r api_port ingress_port dns_port gossip_port < "$state/ports"
    setsid "$agent" --node-name=demo --data-dir="$state/data" --podman-socket="$socket" \
        --api-addr="0.0.0.0:$api_port" --bind-addr="0.0.0.0:$gossip_port" \
        --ingress-port="$ingress_port" --dns-port="$dns_port" >>"$state/agent.log" 2>&1 {lock}<&- &
    agent_pid=$!
    echo "$agent_pid" > "$state/agent.pid"
}

wait_healthy() {
    local _ api_port
    read -r api_port _ < "$state/ports"
    for _ in {1..200}; do
        curl -sf -m 2 "http://127.0.0.1:$api_port/api/v1/health" >/dev/null && return
        settled
        running "$agent_pid" "$agent" || break
        sleep 0.1
    done
    tail -n 5 "$state/agent.log" >&2
    return 1
}

progress() {                                # waits for three ready pods, showing how many there are
    local ready last="" _
    for _ in {1..600}; do
        ready=$("$psctl" get pods -l app=hello -o json | grep -c '"ready": true' || true)
        if [[ $ready != "$last" ]]; then
            if [[ -t 1 ]]; then printf '\r    %s of 3 pods ready' "$ready"; else say "    $ready of 3 pods ready"; fi
            last=$ready
        fi
        if ((ready >= 3)); then [[ -t 1 ]] && say; return 0; fi
        sleep 0.1
    done
    "$psctl" describe pods >&2
    fail "the pods did not become ready"
}

exec {lock}<scripts/demo.sh
flock -w 3 "$lock" || fail "another demo runs on this machine; end that one first"
if [[ -e $state || -L $state ]]; then
    # What is in it is run as root.
    [[ ! -L $state && -d $state && -O $state ]] || fail "$state is not root's own folder: remove it"
    step "Removing what an earlier demo left behind"
    down
fi
mkdir -m 0700 "$state"
trap 'step "Removing what the demo started"; down' EXIT
trap 'exit 130' INT TERM HUP

step "Starting one node on this machine's Podman"
start_podman
start_agent
wait_healthy || fail "the agent did not become ready; its log is above"
export KUBECONFIG=$state/data/admin.kubeconfig
"$psctl" get nodes -o wide

step "Building the example's image, from scratch ($image)"
mkdir "$state/image"
cp "$DEMO_HELLO" "$state/image/hello"
printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' > "$state/image/Containerfile"
podman build --quiet --isolation chroot --tag "$image" "$state/image" >/dev/null

step "psctl apply -f docs/examples/hello.yaml"
"$psctl" apply -f "$repository/docs/examples/hello.yaml"
progress
"$psctl" get deployments,pods,services,ingresses

step "Calling it through the ingress: curl -H 'Host: hello.localhost' http://127.0.0.1:$ingress_port/"
seen=""
for _ in 1 2 3; do
    answer=$(curl -sS -m 5 --retry 20 --retry-delay 0 --retry-all-errors --fail-with-body -H 'Host: hello.localhost' "http://127.0.0.1:$ingress_port/")
    say "    $answer"
    seen+=$answer
done
[[ $seen == *"Hello from pod hello-"* ]] || fail "the ingress answered something else"

step "Asking its name: dig @127.0.0.1 -p $dns_port hello.default.svc.cluster.local"
addresses=""
for _ in {1..50}; do
    addresses=$(dig @127.0.0.1 -p "$dns_port" +short +tries=1 +time=2 hello.default.svc.cluster.local)
    (( $(wc -l <<<"$addresses") == 3 )) && break
    sleep 0.1
done
sed 's/^/    /' <<<"$addresses"
(( $(wc -l <<<"$addresses") == 3 )) || fail "expected three addresses"

cat <<TXT

Everything works. Go on with, in another terminal, as root${ONESHOT:+, where ONESHOT is not set}:

    export KUBECONFIG=$KUBECONFIG
    $psctl get all
    $psctl describe deployment hello
    kubectl scale deployment hello --replicas=5      (any kubectl from 1.27)
    kubectl get pods -w

    The next machine joins with:
    podman-swarm-agent --join=THIS-MACHINE:$gossip_port --join-token=\$(cat $state/data/join.token)
TXT
if [[ -n $ONESHOT ]]; then
    exit 0
fi
say
say "Ctrl-C ends the demo and removes what it started."
while running "$agent_pid" "$agent"; do sleep 1; done
fail "the agent stopped by itself; the end of its log: $(tail -n 3 "$state/agent.log")"
