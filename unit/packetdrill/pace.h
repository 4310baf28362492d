/* What lets packetdrill run on a busy machine, and through anything that takes a moment: nothing here touches what it judges.
 *
 * Included by run.c, run_system_call.c and wire_server.c of the copy, whose functions call these: see prepare.py.
 */

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/times.h>
#include <unistd.h>

/* Called at the beginning of `schedule_start_time_usecs`, which would spin for a tenth of a second to find the edge of a tick. */
static inline void sleep_till_tick(void)
{
	clock_t first = times(NULL);

	while (times(NULL) == first)
		usleep(300);
	usleep(250);
}

/* Called before accept(): a socket that does not block has its connection as soon as the middle has. */
static inline void await_connection(int fd)
{
	struct pollfd listener = { .fd = fd, .events = POLLIN };

	if (fcntl(fd, F_GETFL) & O_NONBLOCK)
		poll(&listener, 1, 1000);
}

/* Called before the side with the sockets is told that the packets are out: they reach it by another way than what it is told. */
static inline void let_packets_arrive(void)
{
	usleep(2000);
}

#ifndef POLLRDHUP
#define POLLRDHUP 0x2000	/* of <poll.h>, where it is not hidden */
#endif

/* Called when the script has ended on the side without sockets, which then resets what is open: not before the other side is done with it. */
static inline void await_end(int control)
{
	struct pollfd other = { .fd = control, .events = POLLRDHUP };

	poll(&other, 1, 5000);
}
