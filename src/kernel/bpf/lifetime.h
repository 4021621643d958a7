/* How a flow is established, and how it ends. */

/* Tells of the end of a flow; `up` is its client's entry under `key`. */
APART int end(struct tuple *key, struct flow *up, struct flow *down, __u64 now, __u32 how)
{
	struct ended *ended;

	if (__sync_fetch_and_or(&up->flags, FLOW_ENDED) & FLOW_ENDED)
		return 0;
	if (up->flags & FLOW_OPEN)
		leave_all(key, up);
	else if (up->flags & FLOW_JOINED)
		/* Anybody can send something from the middle of a connection; this one was none. */
		return 0;
	ended = ringbuf_reserve(&events, sizeof(*ended), 0);
	if (!ended) {
		count_drop(DROP_UNTOLD);
		return 0;
	}
	ended->key = *key;
	ended->up = *up;
	ended->packets_down = down ? down->packets : 0;
	ended->bytes_down = down ? down->bytes : 0;
	ended->at = now;
	ended->end = how;
	ended->first_byte_us = down ? down->first_byte_us : 0;
	ringbuf_submit(ended, 0);
	return 0;
}

/* Whether this packet of a flow's client may be the beginning of another. What is not established may have lost its way back. */
INLINE int may_begin(const struct flow *flow, const struct packet *p)
{
	if (p->key.protocol == IPPROTO_UDP)
		return !(flow->flags & FLOW_OPEN);
	return (p->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* The flow that such a packet belongs to, or 0 if it begins another; then nothing is left of the one that there was.
 * Apart, so that the verifier has forgotten whether there was one by the time that the new one is opened. */
APART struct flow *going_on(struct packet *p, struct flow *flow)
{
	__u32 ix = flow->backend;
	struct backend *backend = map_lookup(&backends, &ix);
	struct flow *down;
	struct tuple other;

	turn_round(&other, &flow->to);
	down = other_of(flow, &other);
	/* After an end the client may use its port again. Before the first answer to a SYN, the backend may have been found down; and a
	 * flood may have displaced the way back: an answer would find another client, or nobody. */
	if (!(flow->flags & FLOW_ENDED) &&
	    (flow->flags & (FLOW_OPEN | FLOW_DSR) ||
	     (down && (flow->flags & FLOW_ANSWERED || p->key.protocol == IPPROTO_UDP || (backend && backend->ready)))))
		return flow;
	/* The backend may remember a connection of before under these ports, and turn away whatever comes from there. */
	p->elsewhere = (flow->flags & (FLOW_ENDED | FLOW_OPEN)) == FLOW_ENDED;
	if (down)
		forget(&other);
	forget(&p->key);
	return 0;
}

/* Whether what a backend says is about the beginning of its client's flow, and not about something that it remembers under these
 * ports: then it acknowledges what the client has sent. */
INLINE int answers(const struct flow *client, const struct packet *p)
{
	return p->key.protocol == IPPROTO_UDP || client->flags & FLOW_JOINED || client->next - p->ack <= (__u32)client->bytes;
}

/* Whether a client's reset is about something that the backend remembers under these ports: it has told the client what it expects
 * there instead of this SYN, so the client has it forget that (RFC 9293, 3.5.1), and goes on with another SYN, soon. From the same port,
 * where nothing is in its way any more; but once only. */
INLINE int clears(struct flow *flow, const struct packet *p)
{
	return p->flags & TCP_RST && !p->injected && !(flow->flags & (FLOW_ANSWERED | FLOW_OPEN | FLOW_JOINED)) &&
	       p->seq != flow->next && !(__sync_fetch_and_or(&flow->flags, FLOW_CLEARED) & FLOW_CLEARED);
}

/* Whether this packet of a flow's client shows that both sides have been heard. */
INLINE int settles(const struct flow *flow, const struct packet *p)
{
	if ((flow->flags & (FLOW_CLIENT | FLOW_OPEN | FLOW_ENDED)) != FLOW_CLIENT)
		return 0;
	if (p->key.protocol == IPPROTO_UDP)
		return flow->flags & FLOW_ANSWERED;
	if ((p->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_ACK)
		return 0;
	if (flow->flags & FLOW_ANSWERED)
		return 1;
	/* Where answers are not seen, one packet from the middle of a connection proves nothing. */
	return flow->flags & FLOW_DSR && (!(flow->flags & FLOW_JOINED) || flow->packets);
}

/* Both sides have been heard: moves a flow where no flood reaches it. `key` is the client's. 0, or which limit is against it, plus
 * one: then it has ended. */
APART int settle(struct tuple *key, __u64 now)
{
	struct flow *up, *down;
	struct tuple other;
	int why;

	up = map_lookup(&half, key);
	if (!up)
		return 0;
	turn_round(&other, &up->to);
	down = map_lookup(&half, &other);
	if (down && down->id != up->id)
		down = 0;
	if (!down && !(up->flags & FLOW_DSR))
		return 0;
	if (__sync_fetch_and_or(&up->flags, FLOW_OPEN) & FLOW_OPEN)
		return 0;
	why = enter_all(key, up, now);
	if (!why && !map_update(&flows, key, up, BPF_NOEXIST)) {
		if (!down || !map_update(&flows, &other, down, BPF_NOEXIST)) {
			if (key->protocol == IPPROTO_TCP)
				count_opened(up);
			map_delete(&half, key);
			map_delete(&half, &other);
			return 0;
		}
		map_delete(&flows, key);
	}
	leave_all(key, up);
	__sync_fetch_and_and(&up->flags, ~(FLOW_OPEN | FLOW_SOURCED));
	if (!why) {
		count_drop(DROP_FLOWS);
		__sync_fetch_and_or(&up->flags, FLOW_LET_IN);
	} else if (key->protocol == IPPROTO_TCP) {
		/* Whoever of them still speaks is reset. */
		__sync_fetch_and_or(&up->flags, FLOW_ENDED | FLOW_CUT);
		if (down)
			__sync_fetch_and_or(&down->flags, FLOW_CUT);
	}
	return why;
}
