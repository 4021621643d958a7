/* Entries, and what counts them. */

INLINE struct flow *find(const struct tuple *key)
{
	struct flow *flow = map_lookup(&flows, key);
	return flow ? flow : map_lookup(&half, key);
}

/* A flow's entry of the other direction, by its key: what stands there may be another's, for a port whose entry a flood has displaced
 * serves others. */
INLINE struct flow *other_of(const struct flow *flow, const struct tuple *other)
{
	struct flow *its = find(other);
	return its && its->id == flow->id ? its : 0;
}

INLINE void forget(const struct tuple *key)
{
	map_delete(&half, key);
	map_delete(&flows, key);
}

/* What is served where a client's packet goes to. */
APART struct service *service_of(struct tuple *key)
{
	__u32 zero = 0;
	struct state *in_force = map_lookup(&state, &zero);
	struct service_key wanted = {};

	if (!in_force)
		return 0;
	wanted.port = key->dport;
	wanted.protocol = key->protocol;
	wanted.bank = in_force->bank & 1;
	__builtin_memcpy(wanted.address, key->dst, 16);
	return map_lookup(&services, &wanted);
}

INLINE void add(__u32 *gauge, int n)
{
	__sync_fetch_and_add(gauge, n);
}

/* Counts a flow as active, or not any more. */
INLINE void count_active(const struct flow *flow, int n)
{
	__u32 ix = flow->listener;
	struct listener *listener = map_lookup(&listeners, &ix);
	struct backend *backend;
	struct process *whole;

	if (listener)
		add(&listener->active, n);
	ix = flow->backend;
	backend = map_lookup(&backends, &ix);
	if (backend)
		add(&backend->active, n);
	ix = 0;
	whole = map_lookup(&process, &ix);
	if (whole)
		add(&whole->active[flow->to.protocol == IPPROTO_UDP], n);
}

INLINE void count_opened(const struct flow *flow)
{
	__u32 ix = flow->listener;
	struct tally *tally = map_lookup(&listener_tallies, &ix);

	if (tally)
		tally->opened++;
	ix = flow->backend;
	tally = map_lookup(&backend_tallies, &ix);
	if (tally)
		tally->opened++;
}

INLINE void count_bytes(const struct flow *flow, __u64 packets, __u64 bytes, int up)
{
	__u32 ix = flow->listener;
	struct tally *one = map_lookup(&listener_tallies, &ix);
	struct tally *two;

	ix = flow->backend;
	two = map_lookup(&backend_tallies, &ix);
	if (!one || !two)
		return;
	one->packets_up += up ? packets : 0;
	one->bytes_up += up ? bytes : 0;
	one->packets_down += up ? 0 : packets;
	one->bytes_down += up ? 0 : bytes;
	two->packets_up += up ? packets : 0;
	two->bytes_up += up ? bytes : 0;
	two->packets_down += up ? 0 : packets;
	two->bytes_down += up ? 0 : bytes;
}
