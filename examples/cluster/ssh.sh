#!/bin/bash
# A Ray cluster of this machine and of others that it reaches by ssh without a question:
#
#     examples/cluster/ssh.sh start gpu1 gpu2
#     rlkit train algorithms/grpo cluster='{address: auto, engines: 8, learners: 8}'
#     examples/cluster/ssh.sh stop gpu1 gpu2
#
# RLKIT_ENV is a virtual environment with rlkit, at the same place on all of them (default: the one of `rlkit` here). Before `rlkit`
# is called here, or `rlkit submit` elsewhere, give it the token: the last line of `start` says how.
# shellcheck disable=SC2029  # paths are those of here, which are the same there
set -euo pipefail

command=${1:?start or stop}
shift
port=6379
env=${RLKIT_ENV:-$(dirname "$(dirname "$(command -v rlkit)")")}
token=.rlkit/ray-token # below the home folder, here and there
with="RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=\"\$HOME/$token\" RAY_USAGE_STATS_ENABLED=0 $env/bin/ray"

case $command in
start)
    here=${RLKIT_ADDRESS:-$(hostname --ip-address | awk '{print $1}')}
    (
        umask 077
        mkdir -p "$HOME/.rlkit"
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$HOME/$token"
    )
    bash -c "$with start --head --node-ip-address=$here --port=$port --dashboard-host=127.0.0.1"
    for host in "$@"; do
        ssh "$host" "umask 077; mkdir -p .rlkit; cat >$token" <"$HOME/$token"
        ssh "$host" "$with start --address=$here:$port"
    done
    echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/$token"
    ;;
stop)
    for host in "$@"; do
        ssh "$host" "$env/bin/ray stop; rm -f $token"
    done
    "$env/bin/ray" stop
    rm -f "$HOME/$token"
    ;;
*)
    echo "start or stop, not $command" >&2
    exit 2
    ;;
esac
