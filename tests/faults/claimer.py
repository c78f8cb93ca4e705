"""Claims deployments until none is due, and prints their ids. Started by test_two_of_everything.

After the first claim it waits for a line, so that no process claims all before the others run.
"""

import os
import sys

import django

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "deployportal.settings"
    django.setup()
    from deployments.models import Deployment

    print("ready", flush=True)
    sys.stdin.readline()
    got = 0
    while deployment := Deployment.claim(f"worker-{os.getpid()}", excluding=[]):
        print(deployment.pk, flush=True)
        got += 1
        if got == 1:
            sys.stdin.readline()
