"""Looks by itself, now and then, for what is to be removed, and for what no book knows. Harmless twice: rows decide."""

import asyncio
import logging

from asgiref.sync import sync_to_async
from django.conf import settings

from ..engine import steps
from ..engine.dokploy import Dokploy
from ..engine.errors import DokployError
from ..models import Deployment, Installation, Orphan
from ..models.orphan import SCAN_SECONDS
from ..models.stack import ExternalResource

log = logging.getLogger(__name__)


async def sweep_periodically(dokploy: Dokploy) -> None:
    """What fails is tried again at the next sweep."""
    while settings.SWEEPER_SECONDS:
        await asyncio.sleep(settings.SWEEPER_SECONDS)
        try:
            await sync_to_async(Deployment.request_due_removals)()
            await scan_for_orphans(dokploy)
        except DokployError as error:
            log.info("Looking for orphans waits for Dokploy: %s", error)
        except Exception:
            log.exception("A sweep failed")


async def scan_for_orphans(dokploy: Dokploy) -> None:
    """The orphan report, once in a while for all workers together. A look that failed is due again at once.

    Of what is in no book, some was removed between the two readings, Dokploy's and ours: so it is looked for again.
    """
    if await sync_to_async(Orphan.scan_is_due)(settings.ORPHANS_SECONDS):
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                installation, known = await sync_to_async(_books)()
                found = await steps.list_owned(dokploy, installation, known)
                if unknown := await sync_to_async(Orphan.unrecorded)(found):
                    there = {one.id for one in await steps.list_owned(dokploy, installation, known)}
                    unknown = [one for one in unknown if one.id in there]
            await sync_to_async(Orphan.report)(unknown)
        except Exception:
            await sync_to_async(Orphan.reset_scan)()
            raise


def _books() -> tuple[str, set[str]]:
    receipts = ExternalResource.objects.exclude(state=ExternalResource.State.GONE)
    return Installation.current().id, set(receipts.values_list("external_id", flat=True))
