"""Checks the evidence of a fault anew, from the frames alone: for somebody who was not there and trusts neither side.

What a third party needs are the parameters, the roster and the evidence. Its entry "digests" (u64be id ‖ digest of the advertisement, for every
member of U1) gives T1 together with the context: nobody can find other digests for the T1 that the accused signed, so U1, the graph
and the order of every dealer's leaves follow, and nothing about the round is taken on trust.

Three things stay. An identity that was stolen signs like its owner. A dealer that works with the server can sign two roots, so a share that contradicts
one of them proves that one of two parties is corrupt: the sentence then names both, and the holder clears itself with the other header.
And what only the server could read proves nothing to others: a wrong MAC box, a body whose padding is not zero.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from secagg import messages
from secagg.crypto import merkle, shamir
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import Purpose, box_info
from secagg.crypto.shamir import SHARE_LENGTH
from secagg.errors import EvidenceError, PeerFault, SealError, SecaggError
from secagg.identity import Roster
from secagg.params import RoundParams
from secagg.protocols.pairwise import advertise
from secagg.protocols.pairwise.parties import (
    ENTRY_LENGTH,
    ROOT,
    SELF,
    Party,
    View,
    advertisement_digest,
    entry_digest,
    entry_ids,
    mask_key_pair,
    pair_commitment,
    pair_seed,
    seed_commitment,
    share_commitment,
    statement,
    view,
)

MessageT = TypeVar("MessageT", bound=messages.Message)


def check(evidence: Mapping[str, bytes], party: int, params: RoundParams, roster: Roster) -> str:
    """What the evidence of a `PeerFault` or a `DisputeError` proves.

    Args:
        evidence: Frames and fields by name, as they were received.
        party: The accused client.
        params: The round.
        roster: Everybody's public keys.

    Returns:
        One sentence. It says "proves" where only the accused can have made what is there, and names both where it is one of two.

    Raises:
        EvidenceError: It proves nothing: forged, of another round, or of a kind that only the server can judge.

    Guarantees:
        No evidence against a client that kept to the protocol is accepted, but for a sentence that names both sides.
    """
    names = frozenset(evidence)
    if not all(isinstance(value, bytes) for value in evidence.values()):
        raise EvidenceError("evidence is bytes by name")
    here = Party(params, roster)
    if names - {"digests"} == {"advertisement"}:
        return _advertisement(evidence["advertisement"], party, here)
    case = _Case(evidence, party, here, _view(evidence.get("digests"), party, here))
    if "shares" in names:
        return _parts(case)
    if "unmask" in names:
        return _revealed(case) if "share header" in names else _answers(case)
    if "share header" in names:
        return _sealed(case) if "root" in names else _dealing(case)
    if "mask header" in names:
        return _refusals(case)
    if any(name.startswith("mask header ") for name in names):
        return _dispute(case)
    raise EvidenceError(f"no kind of evidence is made of {sorted(names)}")


@dataclasses.dataclass(frozen=True, repr=False)
class _Case:
    """Evidence against one client in a round whose T1 and graph are known."""

    evidence: Mapping[str, bytes]
    party: int
    here: Party
    view: View

    def get(self, name: str) -> bytes:
        """One entry."""
        if name not in self.evidence:
            raise EvidenceError(f"{name!r} is missing")
        return self.evidence[name]

    def numbered(self, prefix: str) -> dict[int, bytes]:
        """The entries `prefix N` by client N, sorted."""
        found = {}
        for name, value in self.evidence.items():
            if name.startswith(f"{prefix} ") and name != f"{prefix} header":
                number = name[len(prefix) + 1 :]
                if not number.isascii() or not number.isdecimal() or len(number) > 20:
                    raise EvidenceError(f"{name!r} names no client")
                found[int(number)] = value
        return dict(sorted(found.items()))

    def message(self, name: str, kind: type[MessageT], sender: int) -> MessageT:
        """A frame that its sender signed in this round."""
        return _message(
            self.get(name), kind, binding=self.view.transcript, sender=sender, roster=self.here.roster, name=name
        )

    def leaf(self, dealer: int, holder: int) -> bytes:
        """The leaf for a holder under the root that the dealer signed."""
        header = self.message("share header", messages.ShareHeader, dealer)
        holders = self.view.graph.holders(dealer) if dealer in self.view.advertisers else ()
        if holder not in holders:
            raise EvidenceError(f"client {holder} holds no share of client {dealer}")
        leaf = self.get(f"leaf {holder}")
        try:
            merkle.check(
                leaf,
                index=holders.index(holder),
                size=len(holders),
                path=self.get(f"path {holder}"),
                expected_root=header.root,
            )
        except SecaggError as error:
            raise EvidenceError(f"leaf {holder} is not under the root that client {dealer} signed: {error}") from None
        return leaf

    def part(self, dealer: int, holder: int) -> messages.Part:
        """The leaf for a holder that is not the dealer itself, in its fields."""
        leaf = self.leaf(dealer, holder)
        pair = self.view.graph.is_chooser(dealer, holder)
        try:
            return messages.Part.decode(leaf, self.here.suite.box_overhead, pair=pair)
        except SecaggError as error:
            raise EvidenceError(f"leaf {holder}: {error}") from None

    def commitment(self, dealer: int, holder: int, kind: bytes) -> bytes:
        """What the dealer committed to for a holder, or for itself."""
        if holder == dealer:
            own = self.leaf(dealer, holder)
            if len(own) != messages.OWN_PART_LENGTH:
                raise EvidenceError(f"leaf {holder} of client {dealer} has {len(own)} bytes")
            return own[:32] if kind == ROOT else own[32:]
        part = self.part(dealer, holder)
        return part.root_commitment if kind == ROOT else part.self_commitment

    def advert(self, client: int) -> messages.Advertise:
        """The advertisement that is in T1, signed by its client."""
        frame = self.get("advertisement")
        if entry_digest(self.view.digests, self.view.advertisers.index(client)) != advertisement_digest(frame):
            raise EvidenceError(f"the advertisement of client {client} is not the one of this round")
        return _message(
            frame,
            messages.Advertise,
            binding=self.here.context,
            sender=client,
            roster=self.here.roster,
            name="advertisement",
        )


def _message(frame: bytes, kind: type[MessageT], *, binding: bytes, sender: int, roster: Roster, name: str) -> MessageT:
    try:
        return messages.unseal(frame, kind, binding=binding, sender=sender, roster=roster)
    except SecaggError as error:
        raise EvidenceError(f"{name!r} is no frame of client {sender} in this round: {error}") from None


def _view(digests: bytes | None, party: int, here: Party) -> View:
    """T1 and the graph, from the digests of U1."""
    if digests is None:
        raise EvidenceError("'digests' is missing: T1 could be that of any round")
    if len(digests) % ENTRY_LENGTH:
        raise EvidenceError(f"'digests' has {len(digests)} bytes, {ENTRY_LENGTH} a member are needed")
    members = entry_ids(digests)
    if any(a >= b for a, b in itertools.pairwise(members)) or not set(members) <= set(here.params.cohort):
        raise EvidenceError("'digests' does not have members of the cohort in order")
    if party not in members:
        raise EvidenceError(f"client {party} is not in U1")
    return view(here, digests, members, {})


def _advertisement(frame: bytes, party: int, here: Party) -> str:
    """Keys that nobody can use. A MAC key that was sealed wrongly is for the server alone to see."""
    advert = _message(
        frame, messages.Advertise, binding=here.context, sender=party, roster=here.roster, name="advertisement"
    )
    try:
        advertise.check_keys(advert, frame, party, here)
        for key in (advert.channel_key, advert.mask_key):
            here.suite.check_public_key(key)
    except (PeerFault, SealError) as error:
        return f"proves that client {party} signed an advertisement with keys that nobody can use: {error}"
    raise EvidenceError("the advertisement's keys are right, and only the server can open its MAC box")


def _parts(case: _Case) -> str:
    """Parts of another number or length than the graph asks for, under a signed root."""
    try:
        frame = messages.decode(case.get("shares"), messages.ShareFrame)
    except SecaggError as error:
        raise EvidenceError(f"'shares': {error}") from None
    header = _message(
        frame.header,
        messages.ShareHeader,
        binding=case.view.transcript,
        sender=case.party,
        roster=case.here.roster,
        name="shares",
    )
    if merkle.Tree(frame.leaves or (b"",)).root != header.root:
        raise EvidenceError(f"the parts are not under the root that client {case.party} signed")
    expected = messages.leaf_lengths(case.view.graph, case.party, case.here.suite.box_overhead)
    if [len(leaf) for leaf in frame.leaves] == expected:
        raise EvidenceError("the parts have the right number and lengths")
    return f"proves that client {case.party} signed parts of a wrong number or length"


def _refusals(case: _Case) -> str:
    """Refusals that no client makes, whatever it was dealt."""
    refused = case.message("mask header", messages.MaskHeader, case.party).refused
    limit = max(case.here.params.colluders, 1)
    if list(refused) != sorted(set(refused)):
        return f"proves that client {case.party} signed refusals that are not in order"
    if not set(refused) <= set(case.view.graph.neighbours(case.party)):
        return f"proves that client {case.party} refused clients that are not its neighbours"
    if len(refused) > limit:
        return f"proves that client {case.party} refused {len(refused)} dealers, more than the {limit} that a round allows for"
    raise EvidenceError("the refusals are possible, and the server could have made up any body for this header")


def _dispute(case: _Case) -> str:
    """Who refused whom; with more accusers than may be corrupt, the accused is."""
    found = case.numbered("mask header")
    headers = {i: case.message(f"mask header {i}", messages.MaskHeader, i) for i in found}
    accusers = [i for i, header in headers.items() if i != case.party and case.party in header.refused]
    accused = headers[case.party].refused if case.party in headers else ()
    if not accusers and not accused:
        raise EvidenceError(f"client {case.party} neither refused anybody here nor was refused")
    if len(accusers) > (limit := max(case.here.params.colluders, 1)):
        return f"proves that client {case.party} dealt wrong parts, if at most {limit} are corrupt: clients {accusers} refused it"
    return f"shows a dispute: client {case.party} was refused by {accusers} and refused {list(accused)}; one side of each is wrong"


def _answers(case: _Case) -> str:
    """Answers for other clients, or of another kind, than those that the statement asks for that the accused signed itself."""
    answers = case.message("unmask", messages.Unmask, case.party).answers
    owners = [answer.owner for answer in answers]
    if owners != sorted(set(owners)) or not set(owners) <= set(case.view.graph.holders(case.party)):
        return f"proves that client {case.party} answered for a client twice, out of order, or for one that dealt it nothing"
    sharers, survivors = _ids(case.get("sharers")), _ids(case.get("survivors"))
    signed = statement(case.view.transcript, sharers, survivors)
    try:
        case.here.roster.verify(case.party, Label.SIGNATURE_STATEMENT, signed, case.get("statement signature"))
    except SecaggError as error:
        raise EvidenceError(f"client {case.party} did not sign this statement: {error}") from None
    refused = case.message("mask header", messages.MaskHeader, case.party).refused
    dealers = {case.party, *case.view.graph.within(case.party, sharers)}.difference(refused)
    asked = [(owner, owner in survivors) for owner in sorted(dealers)]
    if [(answer.owner, isinstance(answer, messages.SelfShare)) for answer in answers] == asked:
        raise EvidenceError("the answers are those that the statement asks for")
    return (
        f"proves that client {case.party} did not answer for exactly the clients that its own signed statement asks for"
    )


def _ids(data: bytes) -> tuple[int, ...]:
    if len(data) % 8:
        raise EvidenceError("a set of clients has eight bytes a member")
    return tuple(np.frombuffer(data, ">u8").tolist())


def _revealed(case: _Case) -> str:
    """A revealed share or pair seed that contradicts a signed commitment."""
    leaves = case.numbered("leaf")
    if len(leaves) != 1:
        raise EvidenceError(f"a revealed share is checked against one leaf, not {len(leaves)}")
    (holder,) = leaves
    dealer = _dealer(case)
    owner = dealer if dealer != case.party else holder
    answers = [a for a in case.message("unmask", messages.Unmask, case.party).answers if a.owner == owner]
    if len(answers) != 1 or case.party not in (dealer, holder):
        raise EvidenceError(f"client {case.party} revealed nothing that leaf {holder} of client {dealer} speaks about")
    case.leaf(dealer, holder)
    wrong = []
    if holder == case.party:
        kind = SELF if isinstance(answers[0], messages.SelfShare) else ROOT
        found = share_commitment(case.view.transcript, dealer, holder, kind, answers[0].share)
        wrong += [f"share of the {kind.decode()} secret of"] * (found != case.commitment(dealer, holder, kind))
    if isinstance(answers[0], messages.RootShare) and dealer != holder and case.view.graph.is_chooser(dealer, holder):
        committed = case.part(dealer, holder).pair_commitment
        seed = pair_commitment(case.view.transcript, dealer, holder, answers[0].pair_seed)
        wrong += ["pair seed with"] * (seed != committed)
    if not wrong:
        raise EvidenceError(f"what client {case.party} revealed is what client {dealer} committed to")
    what = f"client {case.party} revealed another {wrong[0]} client {owner} than the committed one"
    if dealer == case.party:
        return f"proves that {what}"
    return f"proves that {what}, or that client {dealer} signed two roots in one round"


def _dealer(case: _Case) -> int:
    """Who sent the share header: whoever's signature is on it, which `leaf` checks."""
    try:
        return messages.decode(
            messages.decode(case.get("share header"), messages.Signed).payload, messages.ShareHeader
        ).sender
    except SecaggError as error:
        raise EvidenceError(f"'share header': {error}") from None


def _dealing(case: _Case) -> str:
    """Shares, t of them, that fit what their dealer signed, and give no secret, or another than it advertised."""
    shares, t = case.numbered("share"), case.here.params.threshold
    if len(shares) < t:
        raise EvidenceError(f"{len(shares)} shares, t = {t} are needed")
    holders = list(shares)[:t]
    kind = _kind_of(case, {holder: shares[holder] for holder in holders})
    limbs = shamir.decode_shares(b"".join(shares[holder] for holder in holders)).reshape(1, t, shamir.LIMBS)
    points = tuple(case.view.graph.point(holder) for holder in holders)
    secret = shamir.reconstruct_many([points], limbs)[0] if (limbs < shamir.PRIME).all() else None
    advert, fault = case.advert(case.party), f"proves that client {case.party} dealt shares of "
    if secret is None:
        return f"{fault}its {kind.decode()} secret that come from no 32-byte secret"
    if kind == SELF:
        if seed_commitment(case.here.context, case.party, secret) != advert.seed_commitment:
            return f"{fault}another self seed than it committed to"
    elif mask_key_pair(case.here.suite, secret, case.here.context).public != advert.mask_key:
        return f"{fault}a mask root that does not give its mask key"
    raise EvidenceError(f"the shares give the {kind.decode()} secret that client {case.party} advertised")


def _kind_of(case: _Case, shares: Mapping[int, bytes]) -> bytes:
    """Of which secret these are shares, each the one that the accused committed to."""
    for kind in (SELF, ROOT):
        if all(
            len(share) == SHARE_LENGTH
            and share_commitment(case.view.transcript, case.party, holder, kind, share)
            == case.commitment(case.party, holder, kind)
            for holder, share in shares.items()
        ):
            return kind
    raise EvidenceError(f"not every share is the one that client {case.party} committed to")


def _sealed(case: _Case) -> str:
    """A pair seed that is not the committed one, seen with the mask root of one end of the edge, which the round has opened."""
    leaves, root = case.numbered("leaf"), case.get("root")
    opened = _opened(case, root)
    if len(leaves) != 1:
        raise EvidenceError(f"a pair seed is checked against one leaf, not {len(leaves)}")
    (holder,) = leaves
    if opened not in (holder, case.party):
        raise EvidenceError(f"client {opened} is at neither end of the edge {case.party}, {holder}")
    case.leaf(case.party, holder)
    if holder == case.party or not case.view.graph.is_chooser(case.party, holder):
        raise EvidenceError(f"client {case.party} does not choose the seed of its edge with client {holder}")
    part, transcript = case.part(case.party, holder), case.view.transcript
    if opened == case.party:
        seed = pair_seed(root, transcript, case.party, holder)
    else:
        key = mask_key_pair(case.here.suite, root, case.here.context)
        try:
            info = box_info(Purpose.PAIR_SEED, transcript, case.party, holder)
            seed = case.here.suite.open(key, part.pair_box or b"", info=info)
        except SealError as error:
            return f"proves that client {case.party} sealed its pair seed for client {holder} wrongly: {error}"
    if pair_commitment(transcript, case.party, holder, seed) == part.pair_commitment:
        raise EvidenceError(f"the pair seed is the one that client {case.party} committed to")
    return f"proves that client {case.party} committed to another pair seed with client {holder} than it used"


def _opened(case: _Case, root: bytes) -> int:
    """Whose mask root it is: that of the client whose advertisement has its key."""
    try:
        frame = messages.decode(case.get("advertisement"), messages.Signed)
        client = messages.decode(frame.payload, messages.Advertise).sender
    except SecaggError as error:
        raise EvidenceError(f"'advertisement': {error}") from None
    if client not in case.view.advertisers:
        raise EvidenceError(f"client {client} is not in U1")
    if len(root) != shamir.SECRET_LENGTH or (
        mask_key_pair(case.here.suite, root, case.here.context).public != case.advert(client).mask_key
    ):
        raise EvidenceError(f"the root is not that of the mask key of client {client}")
    return client
