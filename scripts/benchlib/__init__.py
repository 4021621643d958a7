"""The parts of scripts/bench.

rig        three hosts as network namespaces, and a cgroup for the CPU account of each process group
peers      who is measured: how each balancer is configured, started, and was built
scenarios  what is measured: the load of each scenario and the figures that come of it
report     samples as lines (one JSON object each) and as Markdown tables
"""
