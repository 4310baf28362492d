/* What of packetdrill's verdict on a packet a SYN proxy changes on purpose. Each difference has a name. One that $TOLERATED names is
 * forgiven, and reported on standard error whenever it occurs; any other fails the script. `$TOLERATED` set to `all` forgives whatever
 * a handshake brings: for a run that only teaches the box.
 *
 * Included by run_packet.c of the copy, whose functions call these: see prepare.py.
 */

#include <stdarg.h>

/* The packet under judgement: as it came, and as the script has it. */
static struct {
	struct packet *live, *script;
} judged;

static bool teaches(void)
{
	const char *names = getenv("TOLERATED");

	return names && !strcmp(names, "all");
}

/* Whether this difference is to be forgiven; says so if it is. */
static bool tolerates(const char *name, const char *format, ...)
{
	const char *names = getenv("TOLERATED"), *at;
	size_t length = strlen(name);
	va_list values;

	if (!names)
		return false;
	for (at = strstr(names, name); at; at = strstr(at + 1, name))
		if ((at == names || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
			break;
	if (!at && !teaches())
		return false;
	fprintf(stderr, "tolerated %s: ", name);
	va_start(values, format);
	vfprintf(stderr, format, values);
	va_end(values);
	fprintf(stderr, "\n");
	return true;
}

static bool is_syn(const struct packet *packet)
{
	return packet && packet->tcp && packet->tcp->syn;
}

static struct tcp_option *find_option(struct packet *packet, int kind)
{
	struct tcp_options_iterator each;
	struct tcp_option *option;
	char *error = NULL;

	for (option = tcp_options_begin(packet, &each); option; option = tcp_options_next(&each, &error))
		if (option->kind == kind)
			break;
	free(error);
	return option;
}

/* Called at the beginning of `verify_outbound_live_packet`. */
static void judge(struct packet *live, struct packet *script)
{
	judged.live = live;
	judged.script = script;
}

/* Called at the beginning of `check_field`. Whether a field that differs is forgiven. */
static bool forgives_field(const char *name, u32 expected, u32 actual)
{
	int options;

	if (expected == actual || !judged.script || !judged.script->tcp || !judged.live->tcp)
		return false;
	/* What the kernel cuts itself here, it hands to a test without a wire in one piece, with the flag of the last. */
	if (!strcmp(name, "tcp_psh") && packet_payload_len(judged.live) > 1460)
		return true;
	if (!is_syn(judged.script))
		return false;
	/* A header as much longer as its options are; these are judged by themselves. */
	options = packet_tcp_options_len(judged.live) - packet_tcp_options_len(judged.script);
	if (!strcmp(name, "ipv4_total_length"))
		return (int)(actual - expected) == options;
	if (!strcmp(name, "tcp_data_offset"))
		return (int)(actual - expected) == options / 4;
	if (!strcmp(name, "tcp_window") && judged.script->tcp->ack)
		return tolerates("syn-ack-window", "%u, the script has %u", actual, expected);
	return teaches() && (!strcmp(name, "tcp_window") || !strcmp(name, "tcp_ece"));
}

/* Whether a SYN to the server lacks an option only because the server is known to refuse it. */
static bool is_refused(struct packet *script, int kind)
{
	return !script->tcp->ack && (kind == TCPOPT_TIMESTAMP || kind == TCPOPT_SACK_PERMITTED || kind == TCPOPT_WINDOW) &&
		tolerates("option-known-refused", "kind %d", kind);
}

/* Called at the beginning of `verify_outbound_live_tcp_options`. Whether options that differ are forgiven; if not, packetdrill
 * judges them, for which order and padding count too.
 */
static bool forgives_options(struct state *state, struct packet *actual, struct packet *script, char **error)
{
	struct tcp_options_iterator each;
	struct tcp_option *option;
	int forgiven = 0, other = 0;

	if (!is_syn(script) || !is_syn(actual) || (script->flags & FLAG_OPTIONS_NOCHECK))
		return false;
	if (teaches())
		return true;
	if (state->config->tcp_ts_tick_usecs && find_option(script, TCPOPT_TIMESTAMP) &&
	    tolerates("timestamp-clock", "a tick of %d us is expected", state->config->tcp_ts_tick_usecs))
		state->config->tcp_ts_tick_usecs = 0;
	for (option = tcp_options_begin(script, &each); option; option = tcp_options_next(&each, error)) {
		struct tcp_option *same = find_option(actual, option->kind);

		if (option->kind == TCPOPT_NOP || option->kind == TCPOPT_EOL)
			continue;
		if (!same && is_refused(script, option->kind))
			++forgiven;
		else if (!same || same->length != option->length ||
			 (option->kind != TCPOPT_TIMESTAMP && memcmp(&same->data, &option->data, option->length - 2)))
			++other;
	}
	for (option = tcp_options_begin(actual, &each); option; option = tcp_options_next(&each, error))
		other += option->kind != TCPOPT_NOP && option->kind != TCPOPT_EOL && !find_option(script, option->kind);
	/* Without an option the others have other padding. */
	return forgiven && !other;
}

/* Whether the packet is a pure acknowledgement that says no more than the handshake did. */
static bool repeats_handshake(struct socket *socket, struct packet *live)
{
	struct tcp *tcp = live->tcp;
	u32 seq = ntohl(tcp->seq) - socket->live.local_isn, ack = ntohl(tcp->ack_seq) - socket->live.remote_isn;

	return !tcp->syn && !tcp->fin && !tcp->rst && tcp->ack && !packet_payload_len(live) && !find_option(live, TCPOPT_SACK) &&
		ack == 1 && seq <= 1;
}

/* Whether it is what the script waits for. */
static bool is_awaited(struct socket *socket, struct packet *live, struct packet *script)
{
	struct tcp *tcp = live->tcp, *awaited = script->tcp;

	if (!awaited || awaited->syn != tcp->syn || awaited->fin || awaited->rst || awaited->ack != tcp->ack || packet_payload_len(script))
		return false;
	if (tcp->syn)
		return true;
	return ntohl(awaited->seq) - socket->script.local_isn == ntohl(tcp->seq) - socket->live.local_isn &&
		ntohl(awaited->ack_seq) - socket->script.remote_isn == ntohl(tcp->ack_seq) - socket->live.remote_isn &&
		((script->flags & FLAG_WIN_NOCHECK) || awaited->window == tcp->window) && awaited->ece == tcp->ece;
}

/* Whether a packet from the socket is one that the box has added. */
static bool is_added(struct state *state, struct socket *socket, struct packet *live)
{
	/* The window update, its four repetitions, and a probe. */
	const int most = 6;
	static int added;
	struct packet *script = state->event->event.packet;
	struct tcp *tcp = live->tcp;

	if (!tcp || !script || is_awaited(socket, live, script))
		return false;
	if (tcp->syn && !tcp->ack && ntohl(tcp->seq) == socket->live.local_isn &&
	    (socket->state == SOCKET_ACTIVE_SYN_SENT || socket->state == SOCKET_ACTIVE_SYN_ACKED))
		return tolerates("second-syn", "window %u", ntohs(tcp->window));
	return repeats_handshake(socket, live) && ++added <= most &&
		tolerates("handshake-ack", "seq %u, window %u", ntohl(tcp->seq) - socket->live.local_isn, ntohs(tcp->window));
}

static struct socket *find_socket_for_live_packet(struct state *, const struct packet *, enum direction_t *);
static struct socket *find_connect_for_live_packet(struct state *, struct packet *, enum direction_t *);

/* What `sniff_outbound_live_packet` calls instead of the function that this one asks. */
static struct socket *find_socket_or_skip(struct state *state, struct packet *live, enum direction_t *direction, bool *skipped)
{
	struct socket *socket = find_socket_for_live_packet(state, live, direction);

	*skipped = socket && *direction == DIRECTION_OUTBOUND && is_added(state, socket, live);
	return *skipped ? NULL : socket;
}
