/* Which backend a new connection gets: src/balance once more, within what the verifier takes. */

/* The backend in a slot of a pool, and the slot and index that it has. */
INLINE struct backend *backend_at(const struct pool *pool, __u32 at, struct slot **slot, __u32 *ix)
{
	__u32 place = pool->table + at;

	*slot = map_lookup(&table, &place);
	if (!*slot)
		return 0;
	*ix = (*slot)->backend;
	return map_lookup(&backends, ix);
}

INLINE __u64 source_key(const struct pool *pool, const struct packet *p)
{
	__u64 key;

	if (!p->is_v6) {
		key = mix2(pool->seed_v4, bpf_htonl(p->key.src[3]) & pool->mask_v4);
	} else {
		__u64 high = (__u64)bpf_htonl(p->key.src[0] & pool->mask_v6[0]) << 32 |
			     bpf_htonl(p->key.src[1] & pool->mask_v6[1]);
		__u64 low = (__u64)bpf_htonl(p->key.src[2] & pool->mask_v6[2]) << 32 |
			    bpf_htonl(p->key.src[3] & pool->mask_v6[3]);
		key = mix2(mix2(pool->seed_v6, high), low);
	}
	return pool->with_port ? mix2(key, bpf_htons(p->key.sport)) : key;
}

/* Live flows at a backend, the workers' connections among them. */
INLINE __u64 live_at(const struct backend *b)
{
	return (__u64)b->active + b->active_elsewhere;
}

/* Whether a backend has room for this packet's connection: one that it has already takes none. */
INLINE __u64 has_room(const struct backend *b, const struct packet *p)
{
	__u64 room = is_zero(b->active_max) | is_below(live_at(b), b->active_max) | not_zero(p->entrance ^ OPENS);

	/* A note for whoever finds none; nothing that is chosen depends on it. */
	((struct packet *)p)->full |= room ^ 1;
	return room;
}

/* The same, and whether the slot gets any. Slots of source_hash are shares: `is_below`. */
INLINE __u64 takes_work(const struct backend *b, const struct slot *slot, const struct packet *p)
{
	return has_room(b, p) & not_zero(slot->weight);
}

/* What bounded_load compares with. */
APART int reckon(const struct pool *pool, struct packet *p)
{
	__u64 total = 0, weight = 0;

	for (int i = 0; i < MEAN_SEEN; i++) {
		struct slot *slot;
		struct backend *b;
		__u64 counts;
		__u32 ix;

		if (SLOTS + i >= pool->length)
			break;
		b = backend_at(pool, SLOTS + i, &slot, &ix);
		if (!b)
			break;
		counts = -has_room(b, p);
		total += live_at(b) & counts;
		weight += b->weight & counts;
	}
	p->mean_total = total;
	p->mean_weight = weight;
	return 0;
}

/* Whether a backend may have another connection: fewer than `bound` times what the mean is for its weight, with this one. */
INLINE __u64 is_under(const struct pool *pool, const struct backend *b, const struct packet *p)
{
	return is_zero(p->mean_weight) |
	       is_less(live_at(b) * p->mean_weight, pool->bound, (p->mean_total + 1) * b->weight, 65536);
}

/* -ln(u) in 1/2^32, u = (drawn + 1/2) / 2^53: `distance` of src/balance/maglev.rs. */
INLINE __u64 distance(__u64 drawn)
{
	__u64 y = 2 * drawn + 1, halvings = 0, z, t, s, more;

#define HALVE(by) \
	more = is_below(y, 1ull << (54 - by)) * by; \
	y <<= more; \
	halvings += more;
	HALVE(32)
	HALVE(16)
	HALVE(8)
	HALVE(4)
	HALVE(2)
	HALVE(1)
#undef HALVE
	z = (((1ull << 54) - y) << 10) / (((1ull << 54) + y) >> 22);
	t = z * z >> 32;
	s = ONE / 15;
	s = ONE / 13 + (s * t >> 32);
	s = ONE / 11 + (s * t >> 32);
	s = ONE / 9 + (s * t >> 32);
	s = ONE / 7 + (s * t >> 32);
	s = ONE / 5 + (s * t >> 32);
	s = ONE / 3 + (s * t >> 32);
	s = ONE + (s * t >> 32);
	return halvings * LN_2 + 2 * (z * s >> 32);
}

/* Nearly all are out. Behind the slots stand those that are not, in order of their identities: the least distance for its weight
 * has it, and who is below the bound comes before who is not. */
APART __u32 nearest(const struct pool *pool, const struct packet *p)
{
	__u64 least = 0, weight = 1, found = 0, found_under = 0;
	__u32 best = 0;

	for (int i = 0; i < NEAREST_SEEN; i++) {
		__u64 to, takes, under;
		struct slot *slot;
		struct backend *b;
		__u32 ix;

		if (SLOTS + i >= pool->length)
			break;
		b = backend_at(pool, SLOTS + i, &slot, &ix);
		if (!b)
			break;
		to = distance(mix2(p->source, b->identity) >> 11);
		under = is_under(pool, b, p);
		takes = is_zero(found) | is_below(found_under, under) |
			(is_zero(under ^ found_under) & is_below(to * weight, least * slot->weight));
		takes &= has_room(b, p);
		best = either(takes, ix + 1, best);
		least = either(takes, to, least);
		weight = either(takes, slot->weight, weight);
		found_under = either(takes, under, found_under);
		found |= takes;
	}
	return best;
}

/* All of them: index of the backend plus one, or 0. */
APART __u32 by_hash(const struct pool *pool, struct packet *p)
{
	__u64 key = source_key(pool, p);
	__u32 at = key % SLOTS;
	__u32 step = 1 + (__u32)(mix2(key, 1) >> 48);

	p->source = key;
	/* A connection that has a backend already is taken for one of its key's: nothing tells whether the bound had moved it. */
	if (pool->bound && p->entrance == OPENS)
		reckon(pool, p);
	for (int probe = 0; probe <= PROBES; probe++) {
		struct slot *slot;
		__u32 ix;
		struct backend *b = backend_at(pool, at, &slot, &ix);

		if (!b)
			break;
		/* Of nobody, nothing. */
		if (is_below(mix2(key, b->identity) % 1024, slot->weight) & has_room(b, p) & is_under(pool, b, p))
			return ix + 1;
		at = wrap(at + step, SLOTS);
	}
	return nearest(pool, p);
}

APART __u32 by_turn(struct pool *pool, const struct packet *p)
{
	__u32 at = __sync_fetch_and_add(&pool->turn, 1) % pool->length;

	for (int i = 0; i < LEAST_SEEN; i++) {
		struct slot *slot;
		__u32 ix;
		struct backend *b = backend_at(pool, at, &slot, &ix);

		if (!b)
			break;
		if (takes_work(b, slot, p))
			return ix + 1;
		at = wrap(at + 1ull, pool->length);
	}
	return 0;
}

/* Of two slots by chance, the backend that has less; 0 if one of them takes nothing. */
APART __u32 by_chance(const struct pool *pool, const struct packet *p)
{
	struct backend *first, *second;
	struct slot *slot;
	__u32 one, two;

	first = backend_at(pool, prandom() % pool->length, &slot, &one);
	if (!first || !takes_work(first, slot, p))
		return 0;
	second = backend_at(pool, prandom() % pool->length, &slot, &two);
	if (!second || !takes_work(second, slot, p))
		return 0;
	return (live_at(second) < live_at(first) ? two : one) + 1;
}

/* Response times as src/balance/least_time.rs has them, in whole numbers: up to two hours, fractions in 1/2^20. */
#define LATENCY_MAX ((1ull << 43) - 1)
#define LATENCY_UNKNOWN 1000000000ull
/* In so many nanoseconds half of an old time is forgotten: LATENCY_TAU_NS of src/stats.rs, times ln 2. */
#define HALVED_NS 6931471806ull

/* What is left of a time that was learned `at`. */
INLINE __u64 faded(__u64 time, __u64 at, __u64 now)
{
	__u64 age = (now - at) & -is_below(at, now), young = is_below(age, 1ull << 40), halvings, x, left;

	halvings = ((age & -young) << 22) / HALVED_NS;
	/* 2^-x, x < 1, by its series, in 1/2^30; x in 1/2^22. */
	x = halvings & 0x3fffff;
	left = 165394 - (x * 16377 >> 22);
	left = 1431680 - (x * left >> 22);
	left = 10327387 - (x * left >> 22);
	left = 59597083 - (x * left >> 22);
	left = 257941248 - (x * left >> 22);
	left = 744261118 - (x * left >> 22);
	left = 1073741824 - (x * left >> 22);
	halvings >>= 22;
	young &= is_below(halvings, 44);
	return (time * (left >> 10) >> ((20 + halvings) & 63)) & -young;
}

/* A backend has taken so long to answer: a longer time than before counts at once and in full. */
APART int learn(const struct flow *flow, __u64 now)
{
	__u32 ix = flow->backend;
	struct backend *b = map_lookup(&backends, &ix);
	__u64 sample = now - flow->opened, before;

	if (!b)
		return 0;
	if (sample > LATENCY_MAX)
		sample = LATENCY_MAX;
	before = b->latency;
	if (before > sample && before <= LATENCY_MAX)
		sample += faded(before - sample, b->latency_at, now);
	b->latency = sample ? sample : 1;
	b->latency_at = now;
	return 0;
}

/* How long a backend takes, as far as that still counts, by whoever has seen it take longer; 0 = unknown. */
INLINE __u64 latency(const struct backend *b, __u64 now)
{
	__u64 known = b->latency & LATENCY_MAX, left = faded(known, b->latency_at, now);
	__u64 elsewhere = b->latency_elsewhere & LATENCY_MAX;

	left += is_zero(left) & not_zero(known);
	return either(is_below(left, elsewhere), elsewhere, left);
}

/* What one more connection costs at a backend, its weight aside. `timed`: response times count. */
INLINE __u64 cost(const struct backend *b, int timed, __u64 now)
{
	__u64 active = live_at(b), time, is_few, is_unknown;

	if (!timed)
		return active + 1;
	/* So that the product has room. */
	is_few = is_below(active, 1 << 20);
	active = either(is_few, active, (1 << 20) - 1);
	time = latency(b, now);
	is_unknown = is_zero(time);
	/* Nothing at all where nobody has tried. */
	return (time + is_unknown * LATENCY_UNKNOWN) * (active + 1) & ((is_unknown & is_zero(active)) - 1);
}

/* Of as many slots as are looked at, from one by chance, the one whose backend costs the least for its weight. */
INLINE __u32 least_of(const struct pool *pool, const struct packet *p, int timed, __u64 now)
{
	__u32 best = 0, at = prandom() % pool->length;
	__u64 best_cost = 0, best_weight = 1;

	for (int i = 0; i < LEAST_SEEN; i++) {
		struct slot *slot;
		struct backend *b;
		__u64 costs, takes;
		__u32 ix;

		if (i >= pool->length)
			break;
		b = backend_at(pool, at, &slot, &ix);
		if (!b)
			break;
		costs = cost(b, timed, now);
		takes = is_zero(best) | is_less(costs, slot->weight, best_cost, best_weight);
		takes &= takes_work(b, slot, p);
		best = either(takes, ix + 1, best);
		best_cost = either(takes, costs, best_cost);
		best_weight = either(takes, slot->weight, best_weight);
		at = wrap(at + 1ull, pool->length);
	}
	return best;
}

/* A function for each kind of cost: in one, the verifier would follow each way through the other as well. */
APART __u32 least_loaded(struct pool *pool, struct packet *p)
{
	return least_of(pool, p, 0, 0);
}

APART __u32 least_timed(struct pool *pool, struct packet *p, __u64 now)
{
	return least_of(pool, p, 1, now);
}

APART __u32 choose(struct pool *pool, struct packet *p, __u64 now)
{
	__u32 chosen;

	if (!pool->length)
		return 0;
	if (pool->only) {
		__u32 ix = pool->only - 1;
		struct backend *b = map_lookup(&backends, &ix);
		return b && has_room(b, p) ? pool->only : 0;
	}
	switch (pool->balance) {
	case BALANCE_HASH:
		return by_hash(pool, p);
	case BALANCE_TURN:
		return by_turn(pool, p);
	case BALANCE_CHANCE:
		chosen = by_chance(pool, p);
		if (chosen)
			return chosen;
		break;
	case BALANCE_TIME:
		return least_timed(pool, p, now);
	}
	return least_loaded(pool, p);
}
