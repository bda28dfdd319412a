# shellcheck shell=bash
# shellcheck disable=SC2034 # QAILAB_RESOURCES is for whoever sources this
# Sourced on a node before Ray starts there: token authentication, TLS, and what the node offers.
#
#   QAILAB_TLS       folder of ca.crt, node.crt and node.key (cluster/certificates.py makes them);
#                    ~/.qailab/tls by default
#   QAILAB_SESSIONS  sessions that a node with an IBM account offers; 4 by default
#
# Leaves QAILAB_RESOURCES, for `ray start --resources`.

export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_USE_TLS=1
QAILAB_TLS=${QAILAB_TLS:-$HOME/.qailab/tls}
export RAY_TLS_CA_CERT=$QAILAB_TLS/ca.crt
export RAY_TLS_SERVER_CERT=$QAILAB_TLS/node.crt
export RAY_TLS_SERVER_KEY=$QAILAB_TLS/node.key

for file in "$RAY_AUTH_TOKEN_PATH" "$RAY_TLS_CA_CERT" "$RAY_TLS_SERVER_CERT" "$RAY_TLS_SERVER_KEY"; do
    if [ ! -r "$file" ]; then
        echo "qailab: $(hostname) cannot read $file; see 'Secrets' in cluster/README.md" >&2
        return 1
    fi
done

# Each actor is a process with some hundred sockets; the usual limit of 1024 ends at about 50.
ulimit -n 65536 2>/dev/null || true

# A node offers hardware if it has the account to reach it.
QAILAB_RESOURCES='{}'
if [ -r "$HOME/.qiskit/qiskit-ibm.json" ]; then
    printf -v QAILAB_RESOURCES '{"qpu_session": %d}' "${QAILAB_SESSIONS:-4}"
fi
