"""A process that claims runs until none is due; prints the ids that it got. Started by test_two_of_everything.

After the first it waits for a line, so that no process gets them all before the others are awake.
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
    while run := Deployment.claim(f"worker-{os.getpid()}", excluding=[]):
        print(run.pk, flush=True)
        got += 1
        if got == 1:
            sys.stdin.readline()
