"""Claim deployments until none is due, and print their ids. test_two_of_everything starts this script.

It waits for a line before the first claim and after it, so that no process claims all before the others start.
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
