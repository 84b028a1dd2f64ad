"""Launches a run on a Ray cluster and follows its log. The same from the shell: rlkit submit CONFIG --address URL.

ray start --head                                            # on one machine, `ray start --address ...` on the others
python examples/ray_job.py http://127.0.0.1:8265 examples/own_data.yaml steps=2 cluster={}
"""

import sys

import rlkit as rk

if __name__ == "__main__":
    address, config, *overrides = sys.argv[1:]
    job = rk.submit(config, overrides, address=address)
    print(f"{job} is done; its run folder is on the cluster")
