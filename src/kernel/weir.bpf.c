/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The kernel engine's data path: one program at the TC ingress of each interface.
 *
 * Theory of operation
 *
 * A packet is a key: who sends to whom. Each connection or session has two entries under such keys, one as its client sends and
 * one as its backend does; an entry says what the packet becomes (`to`), and its `to`, turned round, is the key of the other. A
 * packet with an entry is rewritten and leaves by bpf_redirect_neigh, past the host's own forwarding. A packet without one that
 * opens something (a SYN, a datagram) and is addressed to a service gets a backend, and two entries. A packet from the middle of
 * a connection without entries (the table was lost, or another node had them) joins it if all there is to know follows from the
 * packet: the backend by source_hash, and no port of this host's in it (modes keep and dsr); so does an answer of such a
 * backend, if it goes to a client that the table sends there. Other such packets are answered by RST, so that nobody waits.
 * Everything else is the host's affair: it has no socket at a service's address, so it answers RST to clients that cannot be
 * served, and a port unreachable to datagrams.
 *
 * Entries begin in `half`, an LRU table. When both sides have been heard (TCP: the client's answer to the SYN-ACK; UDP: the
 * client's next datagram after an answer) they move to `flows`, where nothing is ever evicted: a flood of spoofed packets
 * cannot finish a handshake, so it only displaces its like. `flows` is bounded; whoever finds it full stays in `half`. Only
 * what is in `flows` counts as active, and limits are asked twice: before a flow begins, and exactly when it is counted, for a
 * burst of handshakes asks the first time before any of them counts. Entries leave either table by the hand of the process in
 * user space, some time after their end, so that late packets still find their way; it also ends what is idle. The end itself
 * is told here, once (FLOW_ENDED of the client's entry is taken by an atomic or), through `events`.
 *
 * A snapshot (services, pools, slots) is written into the bank that is not in force, and comes into force by one store to
 * `state`. Backends and listeners lie outside the banks, in places that are theirs as long as anything refers to them.
 *
 * In mode nat, clients share the ports that backends see. A backend that ends a connection first remembers its pair of ports for a
 * minute, and takes a SYN over them only if its timestamp is newer than what it saw there last (RFC 6191); or the client would have
 * to wait for its next try. Clocks of clients have nothing to do with each other, so backends see one clock, that of this host:
 * timestamps of clients are moved to it, and echoes of them moved back.
 *
 * To end a connection, the process in user space makes an RST for either side and has it injected as if the other had sent it; so
 * it finds its way, and ends the flow, like any other packet. A mark tells it from others, which nothing from outside can bear. Its
 * number follows all that has passed here until then. If some of that was lost, the receiver takes the number for a guess and asks
 * (RFC 5961, 3.2); whatever comes from then on is answered by RST with exactly the number that is expected.
 *
 * The kernel's verifier follows every way through the program, a million instructions at most, and gives up a way only where it has
 * been before with the same: the same registers, and the same on the stack. So, where it matters (tests/kernel/object.rs prints what it
 * comes to): what a loop decides is reckoned, not branched for; a loop is left where there is nothing to look at; what is not needed
 * after a branch stays on the stack of a function apart, whose end forgets it; and all frames of a chain of calls together have 512
 * bytes, each counted in steps of 32 before Linux 6.8.
 *
 * What this never does: it does not loop over anything that grows, does not wait, does not touch a packet of somebody else, and
 * passes on nothing that it could not rewrite completely.
 *
 * The parts, each built on those before it:
 *
 *   calls       What the kernel offers: its UAPI and its helper functions.
 *   maps        Tables that the process in user space shares, limits of the program, and what is known of a packet.
 *   packet      What a packet is: its headers, and arithmetic of sums and comparisons.
 *   choice      Which backend a new connection gets: src/balance once more, within what the verifier takes.
 *   flows       Entries, and what counts them.
 *   limits      Who may begin a connection: access lists, rates and limits (src/kernel/guards.rs writes them).
 *   lifetime    How a flow is established, and how it ends.
 *   ways        By which interface and neighbour, from which address and port a flow leaves; whose an answer without a flow is.
 *   answers     Packets of our own: resets, and what those who are turned away hear.
 *   timestamps  TCP timestamps (RFC 7323, 3.2): in mode nat backends see one clock.
 *   open        The beginning of a flow.
 *   rewrite     A packet becomes what its flow says.
 *   errors      ICMP errors: about packets that were passed on, and about those that are too big to be.
 */
#include "bpf/calls.h"
#include "bpf/maps.h"
#include "bpf/packet.h"
#include "bpf/choice.h"
#include "bpf/flows.h"
#include "bpf/limits.h"
#include "bpf/lifetime.h"
#include "bpf/ways.h"
#include "bpf/answers.h"
#include "bpf/timestamps.h"
#include "bpf/open.h"
#include "bpf/rewrite.h"
#include "bpf/errors.h"

/* Payload that has not been seen before: what is sent again counts once. */
INLINE __u32 fresh(struct flow *flow, const struct packet *p)
{
	__u32 end = p->seq + p->payload + (p->flags & TCP_SYN ? 1 : 0), start = p->seq + (p->flags & TCP_SYN ? 1 : 0);
	__s32 ahead;

	if (p->flags & TCP_ACK)
		flow->ack = p->ack;
	if (!flow->packets)
		flow->next = start;
	ahead = end - flow->next;
	/* Further ahead than any window: a reset's number may be anything. */
	if (ahead < 0 || ahead > 1 << 30 || p->flags & TCP_RST)
		return 0;
	/* A FIN takes a number, too. */
	flow->next = end + (p->flags & TCP_FIN ? 1 : 0);
	return ahead;
}

/* An RST of our own is made from what had passed when somebody looked. A number that is out of date would be ignored: what has passed
 * since then counts, and nothing passes from here on. */
APART int update(struct __sk_buff *skb, struct packet *p, struct flow *flow)
{
	__u32 old = bpf_htonl(p->seq), new;

	if (__sync_fetch_and_or(&flow->flags, FLOW_CUT) & FLOW_CUT || !flow->packets)
		return 0;
	p->seq = flow->next;
	new = bpf_htonl(p->seq);
	return store_bytes(skb, p->l4 + 4, &new, 4, 0) || l4_csum_replace(skb, p->l4 + 16, old, new, 4);
}

/* A fragment's place: whose it is, without ports. */
INLINE void fragment_key(struct tuple *key, const struct packet *p)
{
	*key = p->key;
	key->sport = p->fragment_id;
	key->dport = p->fragment_id >> 16;
}

APART int later_fragment(struct __sk_buff *skb, struct packet *p)
{
	struct tuple key;
	struct flow *flow;

	fragment_key(&key, p);
	flow = map_lookup(&fragments, &key);
	if (!flow)
		return PASS;
	if (p->hops <= 1)
		return drop(DROP_TTL);
	if (rewrite(skb, p, &flow->to))
		return DROP;
	count_bytes(flow, 1, p->payload, flow->flags & FLOW_CLIENT);
	return leave(flow);
}

SEC("classifier/ingress")
int ingress(struct __sk_buff *skb)
{
	__u32 zero = 0;
	/* Not on the stack, where the verifier would follow each value that it can have. */
	struct packet *p = map_lookup(&packets, &zero);
	struct flow *flow, *other_flow;
	struct tuple other;
	__u64 now, packets;
	__u32 up, mtu = 0, bytes;
	int verdict;

	if (!p)
		return PASS;
	/* 0: for this host. Tagged frames come again, through their own interface. */
	if (skb->pkt_type != 0 || skb->vlan_present)
		return PASS;
	if (!parse(skb, p))
		return PASS;
	now = ktime_ns();
	if (skb->mark > INJECT_MARK && skb->mark <= INJECT_MARK + INJECT_PLAIN) {
		p->injected = skb->mark - INJECT_MARK;
		skb->mark = 0;
		if (p->injected == INJECT_PLAIN)
			return plainly(skb, p, now);
	}
	if (p->fragment == LATER)
		return later_fragment(skb, p);
	if (p->key.protocol != IPPROTO_TCP && p->key.protocol != IPPROTO_UDP)
		return p->fragment == WHOLE ? error(skb, p, now) : PASS;

	flow = find(&p->key);
	if (flow && flow->flags & FLOW_CLIENT && may_begin(flow, p))
		flow = going_on(p, flow);
	/* Its flow has ended meanwhile, or is another program's: that of a process before or after this one. */
	if (p->injected && !flow) {
		skb->mark = INJECT_MARK + p->injected;
		return PASS;
	}
	if (flow && flow->flags & FLOW_CUT && !(p->flags & TCP_RST)) {
		int taken = reset(skb, p, now);
		return taken == PASS ? DROP : taken;
	}
	if (!flow) {
		int taken;

		if (p->key.protocol == IPPROTO_TCP && (p->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
			p->entrance = JOINS;
		other = p->key;
		if (turn_to_client(p))
			return PASS;
		taken = open(skb, p, now, &other);
		if (taken)
			return taken;
		p->key = other;
		flow = map_lookup(&half, &p->key);
		if (!flow)
			return PASS;
	}
	if (is_undeliverable(p))
		return DROP;
	if (p->injected && update(skb, p, flow))
		return drop(DROP_MALFORMED);
	if (settles(flow, p)) {
		__u32 listener = flow->listener;
		int why = settle(&p->key, now);

		if (why)
			return turn_away(skb, p, listener, why - 1, now);
		/* It may have moved. */
		flow = find(&p->key);
		if (!flow)
			return DROP;
	}
	if (now / 1000000000ull > (__u64)flow->routed + ROUTE_SECONDS)
		find_way(skb, flow, flow->ifindex, now / 1000000000ull);
	/* Of a merged packet, the segments that it will become. */
	if (check_mtu(skb, flow->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) > 0)
		return too_big(skb, p, mtu, now);
	if (p->key.protocol == IPPROTO_TCP && p->flags & TCP_SYN)
		clamp_mss(skb, p, flow->ifindex);
	if (flow->behind && move_timestamps(skb, p, flow))
		return drop(DROP_MALFORMED);
	if (rewrite(skb, p, &flow->to))
		return DROP;
	if (p->fragment == FIRST) {
		fragment_key(&other, p);
		map_update(&fragments, &other, flow, BPF_ANY);
	}

	up = flow->flags & FLOW_CLIENT;
	packets = skb->gso_segs ? skb->gso_segs : 1;
	flow->last = now;
	bytes = p->key.protocol == IPPROTO_TCP ? fresh(flow, p) : p->payload;
	__sync_fetch_and_add(&flow->packets, packets);
	__sync_fetch_and_add(&flow->bytes, bytes);
	if (!up && !flow->first_byte_us && (bytes || p->key.protocol == IPPROTO_UDP)) {
		flow->first_byte_us = (now - flow->opened) / 1000 + 1;
		learn(flow, now);
	}
	count_bytes(flow, packets, bytes, up);

	verdict = leave(flow);
	turn_round(&other, &flow->to);
	if (!up && !(flow->flags & FLOW_ANSWERED)) {
		other_flow = other_of(flow, &other);
		if (!other_flow || answers(other_flow, p))
			__sync_fetch_and_or(&flow->flags, FLOW_ANSWERED);
		if (other_flow && flow->flags & FLOW_ANSWERED && !(p->flags & TCP_RST)) {
			if (!(other_flow->flags & FLOW_JOINED))
				other_flow->connect_us = (now - other_flow->opened) / 1000 + 1;
			__sync_fetch_and_or(&other_flow->flags, FLOW_ANSWERED);
		}
	}
	if (p->key.protocol == IPPROTO_UDP)
		return verdict;
	if (p->flags & (TCP_RST | TCP_FIN)) {
		__u32 how = END_FINISHED;
		struct flow *its = other_of(flow, &other), *client = up ? flow : its, *down = up ? its : flow;

		if (up && clears(flow, p))
			return verdict;
		__sync_fetch_and_or(&flow->flags, FLOW_FIN);
		if (p->injected) {
			how = END_CUT;
			if (client)
				__sync_fetch_and_or(&client->flags, FLOW_CUT);
			if (down)
				__sync_fetch_and_or(&down->flags, FLOW_CUT);
		} else if (p->flags & TCP_RST) {
			how = up ? END_CLIENT_RESET : END_BACKEND_RESET;
			if (!up && client && !(client->flags & FLOW_ANSWERED))
				how = END_REFUSED;
		} else if (!client || !down || !(client->flags & FLOW_FIN) || !(down->flags & FLOW_FIN)) {
			if (!up && client && !(client->flags & FLOW_FIN))
				__sync_fetch_and_or(&client->flags, FLOW_BACKEND_FIRST);
			/* Without a view of the other side, a FIN is the end as far as this side knows. */
			if (!client || !(client->flags & FLOW_DSR))
				return verdict;
		}
		if (client)
			end(up ? &p->key : &other, client, down, now, how);
		return verdict;
	}
	return verdict;
}

/* Has a frame of user space come in at an interface (BPF_PROG_TEST_RUN). */
SEC("classifier/inject")
int inject(struct __sk_buff *skb)
{
	struct injected where;

	if (load_bytes(skb, 6, &where, 6))
		return -1;
	skb->mark = INJECT_MARK + where.kind;
	return clone_redirect(skb, where.ifindex, BPF_F_INGRESS);
}

/* Some helpers are for GPL-compatible programs only. */
char dual_license[] SEC("license") = "Dual MIT/GPL";
