#!/usr/bin/env bash
# pid 1 of one node's namespaces: own hostname, own /etc/hosts; reaps what slurmstepd leaves, and ends with slurmd.
name=$1 base=$2
mount --bind "$base/etc/hosts" /etc/hosts
hostname "$name"
trap 'kill -TERM "$pid" 2>/dev/null' TERM INT
setpriv --inh-caps=-all --ambient-caps=-all slurmd -D -N "$name" -f "$base/etc/slurm.conf" & pid=$!
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
