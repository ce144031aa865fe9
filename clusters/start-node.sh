#!/usr/bin/env bash
# Runs Ray on this machine with the preemption watcher beside it, and returns once Ray is up; called again, it restarts both.
#
#   clusters/start-node.sh [--foreground] CLOUD ray start --block FLAGS...
#
# CLOUD: whose notice the watcher looks for, aws, gcp, azure, or none for SIGTERM alone; head: no watcher, for a machine that
# is not to be taken away. A SIGTERM drains the node first, GRACE_S before Ray ends. --foreground is for a container, which
# lives as long as this script. Output and process ids are kept in ~/.simclr_ray (or SIMCLR_RAY_STATE).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=${SIMCLR_RAY_STATE:-$HOME/.simclr_ray}
export PATH="$root/.venv/bin:$PATH" RAY_AUTH_MODE=token
GRACE_S=${GRACE_S:-30}
UP="Ray runtime started"
UP_S=120
STOP_S=45 # Ray drains for 30 s at SIGTERM

main() {
    mkdir -p "$state"
    if [[ $1 == --foreground ]]; then
        shift
        run "$@"
    else
        stop_earlier
        start "$@"
    fi
}

run() {
    local cloud=$1 code=0
    shift
    ulimit -n 65536 2>/dev/null || true
    trap leave TERM
    watcher=""
    "$@" &
    ray=$!
    echo "$ray" >"$state/ray.pid"
    if [[ $cloud != head ]]; then
        python -m simclr_ray.orchestrate.preemption --cloud "$cloud" --grace-s "$GRACE_S" &
        watcher=$!
    fi
    wait "$ray" || code=$?
    end_watcher KILL # it has nothing left to watch
    exit "$code"
}

leave() {
    trap "" TERM
    end_watcher TERM # it drains the node and ends shortly before the deadline
    kill -TERM "$ray" 2>/dev/null || true
    wait "$ray" || true
    exit 143
}

end_watcher() {
    if [[ $watcher ]]; then
        kill "-$1" "$watcher" 2>/dev/null || true
        wait "$watcher" || true
    fi
}

start() {
    : >"$state/node.log"
    setsid "$root/clusters/start-node.sh" --foreground "$@" >>"$state/node.log" 2>&1 </dev/null &
    local node=$!
    echo "$node" >"$state/node.pid"
    for ((i = 0; i < UP_S * 5; i++)); do
        if grep -q "$UP" "$state/node.log"; then
            echo "start-node: Ray is up, process $node; its output: $state/node.log"
            return
        fi
        kill -0 "$node" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 40 "$state/node.log" >&2
    echo "start-node: Ray is not up; its output: $state/node.log" >&2
    exit 1
}

stop_earlier() {
    local node
    node=$(cat "$state/node.pid" 2>/dev/null || true)
    # A process of another user, or one that has got the number since, is left alone.
    if [[ $node ]] && grep -qs start-node.sh "/proc/$node/cmdline"; then
        kill -TERM "$(cat "$state/ray.pid")" 2>/dev/null || true
        for ((i = 0; i < STOP_S * 5; i++)); do
            kill -0 "$node" 2>/dev/null || return 0
            sleep 0.2
        done
        kill -KILL "$(cat "$state/ray.pid")" 2>/dev/null || true # one that waits for a head does not heed SIGTERM
        while kill -0 "$node" 2>/dev/null; do
            sleep 0.2
        done
    fi
}

main "$@"
