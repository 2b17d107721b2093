"""The world with its pacing consumer: built-in, external, or with fixed weights."""

from __future__ import annotations

from collections import Counter

from buffer_parts import BrokenPromiseError, LostReplyError
from buffer_world import Held, World

from medvista_ray.errors import FenceError, LeaseExpiredError
from medvista_ray.types.delivery import ConsumerSettings, Lease, WaitReason


class LearnerWorld(World):
    """Fetches, trains, acks, publishes, dies and resumes."""

    # --- learner
    def do_attach(self, rng) -> bool:
        if self.attached:
            return False
        settings = ConsumerSettings(
            groups_per_step=self.config.groups_per_step,
            max_staleness=self.config.max_staleness,
            world_size=self.ranks,
            fixed_weights=self.fixed,
        )
        incarnation = self.incarnation if self.mode == "builtin" else None
        answer = self.call("attach", settings, incarnation=incarnation)
        self.fence, self.version, self.attached = answer.fence, answer.policy_version, True
        if self.mode == "external":
            self.history = self.published[self.version]
            self.swap_to = (self.history, self.version)  # the driver finishes an accepted swap
        self.held, self.gradients, self.unpublished, self.ended, self.ack_is_open = [], None, [], False, False
        return True

    def do_fetch(self, rng) -> bool:
        if not self.attached or self.ended or self.ack_is_open:
            return False  # an ack whose reply was lost is repeated before anything else
        rank = rng.randrange(self.ranks)
        held = next((each for each in self.held if rank not in each.shards), None)
        if held is None and rank == 0 and len(self.held) < 1 + self.prefetch * (not self.fixed):
            held = Held(self.version + (0 if self.fixed else len(self.held)))
        if held is None or (rank and held.lease is None):
            return False
        try:
            return self.fetch_shard(held, rank)
        except LeaseExpiredError:
            self.held, self.gradients = [], None
            return True
        except FenceError as error:
            raise BrokenPromiseError(f"an honest fetch was refused: {error}") from error

    def fetch_shard(self, held: Held, rank: int) -> bool:
        if rank == 0:
            written = self.journal.position
            answer = self.call("fetch", fence=self.fence, train_from_version=held.train_from_version, now_s=self.now_s)
            if not isinstance(answer, Lease):
                self.ended = answer.reason is WaitReason.END_OF_DATA and not self.held
                leased = any(not batch.is_acked for batch in self.state.batches.values())
                if answer.reason is WaitReason.END_OF_DATA and leased:
                    raise BrokenPromiseError("end_of_data was told while a batch is leased")
                return self.journal.position > written
            if not self.fixed and max(answer.staleness) > self.config.max_staleness:
                raise BrokenPromiseError(f"handed out {answer.staleness} versions old")
            held.lease = answer
        held.shards[rank] = self.call("shard", held.lease.lease_id, rank=rank)
        if not any(each is held for each in self.held):
            self.held.append(held)
        return True

    def do_train(self, rng) -> bool:
        if self.gradients is not None or not self.held or len(self.held[0].shards) < self.ranks:
            return False
        lease, shards = self.held[0].lease, self.held[0].shards
        samples = [sample for rank in range(self.ranks) for sample in shards[rank].samples]
        if {sample.group_id for sample in samples} != set(lease.group_ids):
            raise BrokenPromiseError("the shards are not the batch")
        if any(shard.totals.num_samples != len(samples) for shard in shards.values()):
            raise BrokenPromiseError("the denominators are not those of the whole batch")
        for uid in {int(sample.token_ids[0]) for sample in samples}:
            common = 0
            for trained, had in zip(self.history, self.sampled_by[uid], strict=False):
                if trained != had:
                    break
                common += 1
            is_open = lease.lease_id in self.state.batches
            if not self.fixed and is_open and len(self.history) - common > self.config.max_staleness:
                raise BrokenPromiseError(
                    f"trained {len(self.history) - common} steps after the weights that sampled it"
                )
        self.gradients = (lease, (*self.history, lease.group_ids))
        return True

    def do_ack(self, rng) -> bool:
        if self.gradients is None:
            return False
        lease, history = self.gradients
        self.ack_is_open = True
        try:
            self.call("ack", lease.lease_id, fence=self.fence)
        except LeaseExpiredError:
            self.held, self.gradients, self.ack_is_open = [], None, False
            return True
        except FenceError as error:
            raise BrokenPromiseError(f"an honest ack was refused: {error}") from error
        self.gradients, self.history, self.ack_is_open = None, history, False
        self.held.pop(0)
        trained = Counter(group_id for batch in history for group_id in batch)
        if max(trained.values()) > 1:
            raise BrokenPromiseError(f"trained twice in one history: {trained.most_common(1)}")
        self.acked.append(lease.lease_id)
        if not self.fixed:
            self.version += 1
            self.unpublished.append((self.version, history, lease.lease_id))
        return True

    def do_publish(self, rng) -> bool:
        if not self.unpublished or not self.attached:
            return False
        version, history, batch_id = self.unpublished[0]
        self.published[version] = history
        try:
            self.call("publish", version, batch_id=batch_id, fence=self.fence)
        except (FenceError, LeaseExpiredError) as error:
            raise BrokenPromiseError(f"an honest publish was refused: {error}") from error
        self.unpublished.pop(0)
        self.swap_to = (history, version)
        return True

    def do_nack(self, rng) -> bool:
        if not self.held or self.gradients is not None:
            return False
        self.call("nack", rng.choice(self.held).lease.lease_id, fence=self.fence)
        self.held = []
        return True

    def do_extend(self, rng) -> bool:
        if not self.held or self.ack_is_open:
            return False
        try:
            self.call("extend", rng.choice(self.held).lease.lease_id, fence=self.fence, now_s=self.now_s)
        except LeaseExpiredError:
            self.held, self.gradients = [], None
        return True

    def do_wait(self, rng) -> bool:
        self.now_s += rng.choice([1, 1, 5])
        return bool(self.call("expire", self.now_s))

    # --- the learner's state is lost
    def do_checkpoint(self, rng) -> bool:
        if self.mode != "builtin" or self.gradients is not None or not self.attached:
            return False
        self.kept = (self.call("snapshot"), self.history, self.version, tuple(self.acked), self.cursor)
        return True

    def do_resume(self, rng) -> bool:
        if self.mode != "builtin" or rng.random() < 0.6:
            return False
        snapshot, self.history, self.version, contained, self.cursor = self.kept
        before = self.state.incarnation
        while True:
            try:
                self.call("cut", snapshot, contained_batch_ids=contained, policy_version=self.version)
                break
            except LostReplyError:
                continue
        if self.state.incarnation <= before:
            raise BrokenPromiseError("a resume has a new incarnation")
        self.incarnation, self.acked, self.attached = self.state.incarnation, list(contained), False
        self.held, self.gradients, self.unpublished, self.ended, self.ack_is_open = [], None, [], False, False
        self.published = {self.version: self.history}
        self.engine_history, self.engine_version = self.history, self.version
        self.intent, self.swap_to, self.said_end = None, None, False
        for admitted in self.buffer.running():
            self.start(admitted)
        return True

    def do_lose_learner(self, rng) -> bool:
        if self.mode != "external" or not self.attached or rng.random() < 0.6:
            return False
        self.attached = False
        self.held, self.gradients, self.unpublished, self.ack_is_open = [], None, [], False
        return True
