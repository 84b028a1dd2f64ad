"""Launches a run on a Ray cluster and follows its log. The same from the shell: rlkit submit CONFIG --address URL.

ray start --head                                            # on one machine, `ray start --address ...` on the others
python examples/ray_job.py http://127.0.0.1:8265 examples/own_data.yaml steps=2 cluster={}
"""

import os
import sys

import rlkit as rk

if __name__ == "__main__":
    address, config, *overrides = sys.argv[1:]
    keys = [name for name in ("HF_TOKEN", "WANDB_API_KEY") if name in os.environ]
    job = rk.submit(config, overrides, address=address, env=keys)
    print(f"{job} is over; its run folder is on the cluster, and `rlkit jobs {job} --fetch .` brings it here")
