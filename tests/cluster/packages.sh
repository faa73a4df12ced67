#!/usr/bin/env bash
# SLURM for tests/cluster, from Debian's packages. Needs root and apt-get; the services are not started.
set -euo pipefail
needed=(slurm-wlm munge slurmctld slurmd slurm-client)
if dpkg -s "${needed[@]}" > /dev/null 2>&1; then exit 0; fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" > /dev/null
