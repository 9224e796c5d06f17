"""Exchange 5: for each neighbour one share: of its self seed if its vector is in the sum, of its mask root if it is not.

[BIK+17] Fig. 4 round 4. The answers follow from the statement that the client signed, never from a list that the server
asks for, and an answer has room for one kind of share. A dropped client's pair seeds come from its neighbours; its root is
reconstructed only for edges to survivors that went silent since.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secagg import messages, ring
from secagg.crypto import prg, shamir
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import Purpose, SecretKey, box_info
from secagg.errors import BelowThresholdError, PeerFault, RoundError, SealError
from secagg.protocols.pairwise.confirm import Confirmed
from secagg.protocols.pairwise.mask import AgreedSurvivors, Stream, stream_keys
from secagg.protocols.pairwise.parties import (
    ROOT,
    SELF,
    Redacted,
    Rejected,
    encode_ids,
    mask_key_pair,
    pair_commitment,
    pair_seed,
    seed_commitment,
    share_commitment,
)


def send(agreed: AgreedSurvivors) -> bytes:
    """One answer for each holder's dealer that this client has shares of."""
    me, near = agreed.me, agreed.near
    survivors = set(agreed.survivors)
    answers: list[messages.SelfShare | messages.RootShare] = []
    for owner in sorted(near.held):
        if owner in survivors:
            answers.append(messages.SelfShare(owner, near.held[owner].self_seed))
        else:
            answers.append(messages.RootShare(owner, near.held[owner].root, near.pair_seeds[owner]))
    return messages.seal(
        messages.Unmask(binding=agreed.view.transcript, sender=me.id, answers=tuple(answers)), me.identity.sign
    )


@dataclasses.dataclass(frozen=True, repr=False)
class SecretRoot(Redacted):
    """A dropped client's mask root, opened for edges to silent survivors, and the key that follows from it."""

    root: bytes
    key: SecretKey


class CollectingAnswers(Redacted):
    """The server during exchange 5: valid shares by owner and holder, pair seeds by (survivor, dropped)."""

    def __init__(self, state: Confirmed) -> None:
        self._masked = state.masked
        self._transcript = state.masked.view.transcript
        self._graph = state.masked.view.graph
        self._deals = state.masked.sharers.deals
        self._signatures = state.signatures
        self._survivors = frozenset(state.masked.survivors)
        self._self_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in self._deals}
        self._root_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in self._deals}
        self._pair_seeds: dict[tuple[int, int], bytes] = {}

    def read(self, client: int, frame: bytes) -> messages.Unverified[messages.Unmask]:
        """A survivor's answers.

        Raises:
            DecodeError: They are not that client's for this round.
        """
        return messages.unverified(frame, messages.Unmask, binding=self._masked.view.transcript, sender=client)

    def take(self, client: int, frame: bytes, message: messages.Unmask) -> None:
        """Keeps every valid answer; raises about the first wrong one after the valid ones are kept.

        Raises:
            PeerFault: An answer is missing, one too many, or not what its dealer committed to.
        """
        masked = self._masked
        dealers = {client, *self._graph.within(client, self._deals)} - set(masked.refusals[client])
        if [(answer.owner, isinstance(answer, messages.SelfShare)) for answer in message.answers] != [
            (owner, owner in self._survivors) for owner in sorted(dealers)
        ]:
            message_text = "did not answer for exactly the clients that the signed statement asks for"
            evidence = {
                "unmask": frame,
                "digests": masked.view.digests,
                "mask header": masked.headers[client],
                "statement signature": self._signatures[client],
                "sharers": encode_ids(masked.sharers.members),
                "survivors": encode_ids(masked.survivors),
            }
            raise PeerFault(client, message_text, evidence)
        faults = [fault for answer in message.answers if (fault := self._keep(answer, client, frame)) is not None]
        if faults:
            raise faults[0]

    def _keep(self, answer: messages.SelfShare | messages.RootShare, client: int, frame: bytes) -> PeerFault | None:
        owner, share = answer.owner, answer.share
        deal = self._deals[owner]
        kind = SELF if isinstance(answer, messages.SelfShare) else ROOT
        if share_commitment(self._transcript, owner, client, kind, share) != deal.commitment(
            client, kind, own=owner == client
        ):
            evidence = {"unmask": frame, "digests": self._masked.view.digests} | deal.evidence(client)
            return PeerFault(
                client, f"revealed a wrong share of the {kind.decode()} secret of client {owner}", evidence
            )
        if isinstance(answer, messages.SelfShare):
            self._self_shares[owner][client] = share
            return None
        self._root_shares[owner][client] = share
        if not self._seed_matches(client, owner, answer.pair_seed):
            chooser, other = (client, owner) if self._graph.is_chooser(client, owner) else (owner, client)
            evidence = {"unmask": frame, "digests": self._masked.view.digests} | self._deals[chooser].evidence(other)
            return PeerFault(
                client, f"revealed a pair seed with client {owner} that is not the committed one", evidence
            )
        self._pair_seeds[client, owner] = answer.pair_seed
        return None

    def _seed_matches(self, client: int, peer: int, seed: bytes) -> bool:
        chooser, other = (client, peer) if self._graph.is_chooser(client, peer) else (peer, client)
        committed = self._deals[chooser].pair(other).pair_commitment
        return committed == pair_commitment(self._transcript, chooser, other, seed)

    def close(self, rejected: Rejected) -> dict[str, npt.NDArray[np.int64]]:
        """Takes the masks off the sum.

        Args:
            rejected: Why clients were missing by then, for an error.

        Returns:
            `{block name: int64 (length,)}`, the exact sum over the survivors.

        Raises:
            BelowThresholdError: A secret that is needed has fewer than t valid shares.
            PeerFault: t valid shares contradict their dealer's own commitments: it is provably corrupt, nothing is published.
            RoundError: The sum is outside what inputs within their bounds can give.
        """
        masked = self._masked
        streams = self._self_masks(rejected)
        for dropped in sorted(set(masked.sharers.members) - self._survivors):
            streams += self._pair_masks(dropped, rejected)
        for index, words in enumerate(masked.sums):
            prg.add_streams(words, stream_keys(streams, index, masked.view.transcript))
        return {
            block.name: _decode(words, block.bits, len(masked.survivors) * block.bound, block.name)
            for block, words in zip(masked.host.params.blocks, masked.sums, strict=True)
        }

    def _reconstruct(
        self, owners: Mapping[int, Mapping[int, bytes]], kind: bytes, rejected: Rejected
    ) -> dict[int, bytes]:
        """The secrets of some owners from t of their shares each, by owner and holder."""
        masked, t = self._masked, self._masked.host.params.threshold
        chosen = {}
        for owner, shares in owners.items():
            if len(shares) < t:
                reason = f"shares of the {kind.decode()} secret of client {owner}"
                raise BelowThresholdError("unmask", t, tuple(sorted(shares)), reason, rejected)
            chosen[owner] = sorted(shares)[:t]
        limbs = shamir.decode_shares(b"".join(owners[i][holder] for i, near in chosen.items() for holder in near))
        points = [tuple(masked.view.graph.point(holder) for holder in near) for near in chosen.values()]
        limbs = limbs.reshape(len(points), t, shamir.LIMBS)
        in_range = [bool((rows < shamir.PRIME).all()) for rows in limbs]
        secrets = {}
        for owner, secret, valid in zip(chosen, shamir.reconstruct_many(points, limbs), in_range, strict=True):
            if secret is None or not valid:
                message = f"dealt shares of its {kind.decode()} secret that come from no 32-byte secret"
                raise PeerFault(owner, message, self._dealing(owner, chosen[owner], owners[owner]))
            secrets[owner] = secret
        return secrets

    def _dealing(self, owner: int, holders: list[int], shares: Mapping[int, bytes]) -> dict[str, bytes]:
        """What proves a dealer corrupt: its advertisement, and t shares with the commitments that it signed."""
        evidence = {
            "advertisement": self._masked.sharers.before.frames[owner],
            "digests": self._masked.view.digests,
        }
        for holder in holders:
            evidence |= self._masked.sharers.deals[owner].evidence(holder)
            evidence[f"share {holder}"] = shares[holder]
        return evidence

    def _self_masks(self, rejected: Rejected) -> list[Stream]:
        masked = self._masked
        shares = {owner: self._self_shares[owner] for owner in masked.survivors}
        seeds = self._reconstruct(shares, SELF, rejected)
        for owner, seed in seeds.items():
            if seed_commitment(masked.host.context, owner, seed) != masked.view.peers[owner].seed_commitment:
                holders = sorted(shares[owner])[: masked.host.params.threshold]
                message = "dealt shares of another self seed than it committed to"
                raise PeerFault(owner, message, self._dealing(owner, holders, shares[owner]))
        return [Stream(seed, Label.SELF_STREAM, subtract=True) for seed in seeds.values()]

    def _pair_masks(self, dropped: int, rejected: Rejected) -> list[Stream]:
        """What the survivors added and subtracted for a client that is not in the sum, each with its sign undone."""
        masked, graph, streams = self._masked, self._masked.view.graph, []
        opened: SecretRoot | None = None
        for client in graph.within(dropped, self._survivors):
            if dropped in masked.refusals[client]:
                continue
            seed = self._pair_seeds.get((client, dropped))
            if seed is None:
                opened = opened or self._open_root(dropped, rejected)
                seed = self._seed_from_root(opened, dropped, client)
            streams.append(Stream(seed, Label.PAIR_STREAM, subtract=graph.adds(client, dropped)))
        return streams

    def _open_root(self, dropped: int, rejected: Rejected) -> SecretRoot:
        masked, shares = self._masked, self._root_shares[dropped]
        root = self._reconstruct({dropped: shares}, ROOT, rejected)[dropped]
        key = mask_key_pair(masked.host.suite, root, masked.host.context)
        if key.public != masked.view.peers[dropped].mask_key:
            holders = sorted(shares)[: masked.host.params.threshold]
            message = "dealt shares of a mask root that does not give its mask key"
            raise PeerFault(dropped, message, self._dealing(dropped, holders, shares))
        return SecretRoot(root, key)

    def _opened(self, opened: SecretRoot, dropped: int) -> dict[str, bytes]:
        """What shows that an opened root is the one that its owner advertised."""
        frame = self._masked.sharers.before.frames[dropped]
        return {"root": opened.root, "advertisement": frame, "digests": self._masked.view.digests}

    def _seed_from_root(self, opened: SecretRoot, dropped: int, client: int) -> bytes:
        """The pair seed of an edge whose surviving end is silent, from the dropped end's root."""
        masked, transcript = self._masked, self._masked.view.transcript
        if masked.view.graph.is_chooser(dropped, client):
            seed, culprit, holder = pair_seed(opened.root, transcript, dropped, client), dropped, client
        else:
            culprit, holder = client, dropped
            box = masked.sharers.deals[client].pair(dropped).pair_box or b""
            info = box_info(Purpose.PAIR_SEED, transcript, client, dropped)
            try:
                seed = masked.host.suite.open(opened.key, box, info=info)
            except SealError as error:
                evidence = self._opened(opened, dropped) | masked.sharers.deals[client].evidence(dropped)
                raise PeerFault(
                    client, f"sealed its pair seed for client {dropped} wrongly: {error}", evidence
                ) from None
        if not self._seed_matches(client, dropped, seed):
            evidence = self._opened(opened, dropped) | masked.sharers.deals[culprit].evidence(holder)
            raise PeerFault(culprit, "committed to another pair seed than it used", evidence)
        return seed


def _decode(words: npt.NDArray[np.unsignedinteger], bits: int, limit: int, name: str) -> npt.NDArray[np.int64]:
    total = ring.decode_in_place(words, bits)
    if total.size and (int(total.min()) < -limit or int(total.max()) > limit):
        raise RoundError(
            f"block {name!r}: the sum leaves +-{limit}, which inputs within their bounds cannot: a client sent more than its "
            "bound, or a mask did not cancel; nothing is published"
        )
    return total
