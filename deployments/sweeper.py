"""Looks by itself, now and then, for what is to be removed, and for what no book knows. Harmless twice: rows decide."""

import asyncio
import logging

from asgiref.sync import sync_to_async
from django.conf import settings

from .engine import steps
from .engine.dokploy import Dokploy
from .engine.errors import DokployError
from .models import Deployment, Installation, Orphan
from .models.orphan import LOOK_SECONDS
from .models.stack import Receipt

log = logging.getLogger(__name__)


async def sweep_for_ever(dokploy: Dokploy) -> None:
    """What fails is tried again at the next sweep."""
    while settings.SWEEPER_SECONDS:
        await asyncio.sleep(settings.SWEEPER_SECONDS)
        try:
            await sync_to_async(Deployment.request_due_removals)()
            await look_for_orphans(dokploy)
        except DokployError as error:
            log.info("Looking for orphans waits for Dokploy: %s", error)
        except Exception:
            log.exception("A sweep failed")


async def look_for_orphans(dokploy: Dokploy) -> None:
    """The orphan report, once in a while for all workers together. A look that failed is due again at once.

    Of what is in no book, some was removed between the two readings, Dokploy's and ours: so it is looked for again.
    """
    if await sync_to_async(Orphan.look_is_due)(settings.ORPHANS_SECONDS):
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                installation, known = await sync_to_async(_books)()
                found = await steps.all_marked(dokploy, installation, known)
                if unknown := await sync_to_async(Orphan.unknown)(found):
                    there = {one.id for one in await steps.all_marked(dokploy, installation, known)}
                    unknown = [one for one in unknown if one.id in there]
            await sync_to_async(Orphan.report)(unknown)
        except Exception:
            await sync_to_async(Orphan.look_again)()
            raise


def _books() -> tuple[str, set[str]]:
    receipts = Receipt.objects.exclude(state=Receipt.State.GONE)
    return Installation.current().id, set(receipts.values_list("external_id", flat=True))
