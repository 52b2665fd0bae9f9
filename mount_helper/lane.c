/*
 * The lane: the owner of /dev/fuse.
 *
 * It stands between the kernel and the daemon. A read whose chunks are all in L1 it answers itself (hits.c). Any other
 * request is kept, and sent to the daemon over a SOCK_SEQPACKET socket (one message a request, one a reply: libfuse takes
 * such a socket for its device). The copy is dropped when the reply has come. So a daemon may die at any moment: what it
 * had not answered is still here, and the next daemon gets it. Nobody who reads through the mount sees more than a delay.
 *
 *      kernel --read-->   readers          --reply--> kernel     hits
 *                         readers          --send-->  daemon     all else (or the table only, while there is no daemon)
 *      kernel <--write--  daemon                                 answers to reads
 *      kernel <--write--  carrier thread   <--recv--  daemon     other replies; and which reads have been answered
 *      kernel <--write--  notifier thread  <-- queue             the daemon's invalidations
 *
 * Four times a second the carrier looks at deadlines and killed readers.
 *
 * Why the notifier is a thread of its own: the kernel takes inode locks while it is told to invalidate, and a lookup
 * holds that lock until its reply is written. The thread that writes replies must never wait for it.
 *
 * Who may answer a request. The kernel takes the first answer to a unique and refuses the others, and never uses a unique
 * twice. So it is harmless that a request is sent to two daemons, that the first one's reply was still in the socket when
 * the second one got the request, that a daemon dies between its answer to the kernel and its word about it to us, or that
 * an answer comes late: all answers are about the same request, and one of them wins. What the lane itself writes, it
 * writes for a request that it has just taken out of the table (under the lock), so that its counts are right. It is
 * needed for all this that inode numbers and file handles mean the same in every daemon.
 *
 * Each kept request is either `waiting` (nobody has it), `sent` (the daemon with that serial number has it), `on disk`
 * (a reader waits for its bytes) or `held` (a daemon gave it back):
 *      read from the kernel -> waiting, sent or on disk;  on disk, too long or in vain -> waiting
 *      sent, its daemon is lost -> waiting;  waiting, a daemon is there -> sent
 *      sent, its daemon answers HOLD_ERROR -> held;  held, at a tick -> waiting
 * A daemon is lost when its socket is at its end, that is, after all of its replies have been read from it.
 *
 * FUSE_INIT is kept for ever and is the first message to every daemon, because libfuse refuses all else before it. The
 * first reply goes to the kernel, later ones are dropped; a daemon becomes `current` (gets requests) with its INIT reply.
 *
 * Readers that shall wait. While the store is away, a daemon that knows that the readers of an image would rather wait than
 * fail (on_outage = "hold") answers their requests with HOLD_ERROR after a while. So they take no room in the daemon, are
 * asked for again and again, by its successors too, and have no deadline: the store or a SIGKILL ends them. Requests for
 * an image that the board says this of have none from the beginning, so that they outlive a daemon that does not come up.
 *
 * Devices. Each reader has an open file of /dev/fuse (FUSE_DEV_IOC_CLONE), and the kernel wants the answer through the
 * file that the request came by. So a request knows its device, and a daemon has all of them.
 *
 * Reads have a socket of their own (SOCK_STREAM), to a daemon that takes them there: a `struct passed_read` each, so that
 * the daemon can take all that there are at once, past libfuse. It writes the answer to the kernel itself, through the
 * device that the read came by, and then its unique, 8 bytes, into the socket. With the lowest bit set (uniques are even)
 * the read is given back instead, as by HOLD_ERROR.
 *
 * Locks: one mutex for the table, the daemons and the queue; another for the crew. Nothing blocks under them: the sockets
 * are used without blocking. The threads know nothing of Python and never hold the GIL.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CARRIER_NICE 0
#define NOTIFICATION_LIMIT_BYTES (16 * 1024 * 1024)
#define TICK_NS 250000000ULL /* between looks at deadlines and killed readers */
#define CHECKS_PER_TICK 64   /* readers looked up in /proc; 20 us each */
#define CONGESTED_AT 96      /* asynchronous reads in flight from which the kernel's readahead thinks twice */
#define HELD_PER_TICK 128    /* held requests that are sent again: a daemon has room for so many at once */
#define BATCH 64             /* replies of a daemon carried before the others are looked at */
#define BUSY_NS 10000000ULL
#define NAP_NS 100000
#define PF_EXITING 0x4       /* of the kernel: a thread that ends */
#define GIVEN_BACK_BIT 1ULL  /* set in the unique of a read that is not answered */
#define STOP_TRY_NS 20000000
#define INTERRUPT_BIT 1ULL   /* set in the unique of an INTERRUPT; all other uniques are even */

#define LARGEST_OFFSET (1ULL << 48) /* of any image */

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void tell(struct lane *lane, enum event event) {
    uint64_t one = 1;
    atomic_fetch_or(&lane->events, (unsigned)event);
    if (write(lane->event_fd, &one, sizeof one) < 0) {
        /* the counter is full: the supervisor will see it anyway */
    }
}

void kernel_unmounted(struct lane *lane) {
    if (!atomic_exchange(&lane->unmounted, true))
        tell(lane, EVENT_UNMOUNTED);
}

static struct kept *first_of(struct lane *lane, enum kept_state state) {
    return lane->kept.lists[state].first;
}

static void note_fullness(struct lane *lane) {
    atomic_store_explicit(&lane->is_full, lane->kept.bytes >= lane->kept_limit_bytes, memory_order_relaxed);
}

static struct kept *keep(struct lane *lane, const struct fuse_in_header *request, uint32_t device,
                         enum kept_state state) {
    struct kept *kept = kept_add(&lane->kept, request, device, state);
    note_fullness(lane);
    return kept;
}

static uint32_t take(struct lane *lane, uint64_t unique, uint32_t *device) {
    uint32_t opcode = kept_take(&lane->kept, unique, device);
    note_fullness(lane);
    return opcode;
}

/* ---- Answers to the kernel ---- */

void answer_error(struct lane *lane, uint32_t device, uint64_t unique, int error) {
    struct fuse_out_header header = {.len = sizeof header, .error = -error, .unique = unique};
    if (write(lane->devices[device], &header, sizeof header) < 0 && errno == ENODEV)
        kernel_unmounted(lane);
}

/*
 * Write a reply: its header, which says the whole length, and what follows it.
 * ENOENT: the kernel does not wait for it any more.
 */
void answer(struct lane *lane, uint32_t device, struct fuse_out_header *reply, const void *payload) {
    struct iovec parts[] = {{reply, sizeof *reply}, {(void *)payload, reply->len - sizeof *reply}};
    int fd = lane->devices[device];
    ssize_t written = payload == reply + 1 ? write(fd, reply, reply->len) : writev(fd, parts, 2);
    if (written >= 0)
        return;
    if (errno == ENOENT) {
        COUNT(lane, kernel_gave_up);
    } else if (errno == ENODEV) {
        kernel_unmounted(lane);
    } else { /* a reply that the kernel refuses as a whole must not leave its reader without an answer */
        COUNT(lane, write_errors);
        answer_error(lane, device, reply->unique, EIO);
    }
}

/* Answer a kept request here, with an error. */
static void answer_kept(struct lane *lane, uint64_t unique, int error) {
    uint32_t device;
    if (take(lane, unique, &device))
        answer_error(lane, device, unique, error);
}

/* ---- To the daemon ---- */

enum sent { SENT, SENT_LATER, SENT_NEVER };

/* Never blocks: a daemon that does not read its socket must not hold up the lane. */
static enum sent send_to(int fd, const void *message, size_t length) {
    while (send(fd, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EMSGSIZE)
            return SENT_NEVER;
        if (errno != EINTR)
            return SENT_LATER; /* full, no memory; or it is dead, which recv will tell */
    }
    return SENT;
}

/* The kernel keeps so short a message in one piece: it is sent whole or not at all. */
static enum sent send_read(int fd, const struct kept *kept) {
    const struct fuse_in_header *request = (const void *)kept->body;
    const struct fuse_read_in *read = (const void *)(request + 1);
    struct passed_read message = {.unique = kept->unique,
                                  .inode = request->nodeid,
                                  .offset = read->offset,
                                  .size = read->size,
                                  .device = kept->device};
    return send_to(fd, &message, sizeof message);
}

static bool is_read(const struct kept *kept) {
    return kept->opcode == FUSE_READ && kept->length == sizeof(struct fuse_in_header) + sizeof(struct fuse_read_in);
}

static void send_kept(struct lane *lane, struct kept *kept) {
    struct daemon *daemon = lane->current;
    enum sent sent = is_read(kept) && daemon->reads_fd >= 0 ? send_read(daemon->reads_fd, kept)
                                                            : send_to(daemon->fd, kept->body, kept->length);
    if (sent == SENT) {
        kept_move(&lane->kept, kept, KEPT_SENT, daemon->serial);
    } else if (sent == SENT_LATER) {
        COUNT(lane, requests_deferred);
    } else {
        COUNT(lane, requests_oversize);
        answer_kept(lane, kept->unique, EIO);
    }
}

/* Send what waits to the current daemon, until its socket is full. */
static void send_waiting(struct lane *lane) {
    struct kept *last = NULL, *kept;
    while (lane->current && (kept = first_of(lane, KEPT_WAITING)) && kept != last) {
        if (kept->sent_before)
            COUNT(lane, resent);
        send_kept(lane, last = kept);
    }
}

/* INIT to the daemons that have not got it yet, if the kernel has sent it. */
static void send_init(struct lane *lane) {
    for (int i = 0; i < MAX_DAEMONS && lane->init; i++) {
        struct daemon *daemon = lane->daemons[i];
        if (daemon && daemon->state == DAEMON_NEW && send_to(daemon->fd, lane->init, lane->init_length) == SENT)
            daemon->state = DAEMON_INIT_SENT;
    }
}

/* ---- Requests ---- */

/* A message that the kernel expects no reply to: the daemon gets it, or nobody does. */
static void pass_unanswered(struct lane *lane, const struct fuse_in_header *request) {
    if (!lane->current || send_to(lane->current->fd, request, request->len) != SENT)
        COUNT(lane, unanswerable_dropped);
}

/* Can no image have bytes there? */
static bool is_beyond_all(const struct fuse_in_header *request) {
    const struct fuse_read_in *read = (const void *)(request + 1);
    return request->opcode == FUSE_READ && request->len == sizeof *request + sizeof *read &&
           (read->offset >= LARGEST_OFFSET || read->size > MAX_READ);
}

static void pass_on(struct lane *lane, const struct fuse_in_header *request, uint32_t device) {
    if (is_beyond_all(request))
        return answer_error(lane, device, request->unique, 0); /* the end of the file */
    struct kept *kept = keep(lane, request, device, KEPT_WAITING);
    if (!kept)
        answer_error(lane, device, request->unique, ENOMEM);
    else if (lane->current)
        send_kept(lane, kept);
}

bool keep_on_disk(struct lane *lane, const struct fuse_in_header *request, uint32_t device) {
    pthread_mutex_lock(&lane->mutex);
    bool is_kept = keep(lane, request, device, KEPT_ON_DISK) != NULL;
    pthread_mutex_unlock(&lane->mutex);
    return is_kept;
}

bool take_from_disk(struct lane *lane, uint64_t unique) {
    uint32_t device;
    pthread_mutex_lock(&lane->mutex);
    bool is_taken = take(lane, unique, &device) != 0;
    pthread_mutex_unlock(&lane->mutex);
    return is_taken;
}

static void pass_to_daemon(struct lane *lane, struct kept *kept) {
    kept_move(&lane->kept, kept, KEPT_WAITING, 0);
    if (lane->current)
        send_kept(lane, kept);
}

bool pass_from_disk(struct lane *lane, uint64_t unique) {
    pthread_mutex_lock(&lane->mutex);
    struct kept *kept = kept_find(&lane->kept, unique);
    bool is_on_disk = kept && kept->state == KEPT_ON_DISK;
    if (is_on_disk)
        pass_to_daemon(lane, kept);
    pthread_mutex_unlock(&lane->mutex);
    return is_on_disk;
}

static void keep_init(struct lane *lane, const struct fuse_in_header *request, uint32_t device) {
    unsigned char *copy = lane->init ? NULL : malloc(request->len);
    if (!copy)
        return answer_error(lane, device, request->unique, lane->init ? EINVAL : ENOMEM);
    lane->init = memcpy(copy, request, request->len);
    lane->init_length = request->len;
    lane->init_unique = request->unique;
    lane->init_device = device;
    send_init(lane);
}

/* Read a small file of /proc; false if it is not there. */
static bool read_proc(uint32_t pid, const char *name, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, text, size - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* Flags and state of a thread; false if it is gone. */
static bool state_of(uint32_t pid, char *state, unsigned *flags) {
    char text[1024];
    const char *after_name = read_proc(pid, "stat", text, sizeof text) ? strrchr(text, ')') : NULL;
    return after_name && sscanf(after_name + 1, " %c %*d %*d %*d %*d %*d %u", state, flags) == 2;
}

/* Does this process end, or is it gone? Its first thread is what tells. */
static bool is_ending(uint32_t process) {
    char state;
    unsigned flags;
    return !state_of(process, &state, &flags) || flags & PF_EXITING;
}

/*
 * Is SIGKILL pending for the thread that asked? (Any deadly signal becomes SIGKILL for every thread of the process.) With
 * asynchronous requests that thread may have ended long before the last one, which waits for them in its exit.
 */
static bool is_killed(struct kept *kept) {
    char text[4096];
    if (!kept->pid)
        return false;
    const char *process = read_proc(kept->pid, "status", text, sizeof text) ? strstr(text, "\nTgid:") : NULL;
    uint32_t number = process ? (uint32_t)strtoul(process + 6, NULL, 10) : 0;
    if (!kept->process)
        kept->process = number;
    if (!kept->process) /* the thread ended before the first look: most likely with all the others */
        return kept->is_held;
    if (kept->process != number)
        return is_ending(kept->process);
    const char *own = strstr(text, "\nSigPnd:"), *shared = strstr(text, "\nShdPnd:");
    unsigned long long pending = own ? strtoull(own + 8, NULL, 16) : 0;
    pending |= shared ? strtoull(shared + 8, NULL, 16) : 0;
    return pending >> (SIGKILL - 1) & 1;
}

/* Does this thread wait, uninterruptibly, in the middle of its exit? So does a killed user of libaio. */
static bool is_exiting(uint32_t pid) {
    char state;
    unsigned flags;
    return pid && state_of(pid, &state, &flags) && state == 'D' && flags & PF_EXITING;
}

/*
 * A signal has come for a thread that waits for a reply. If it kills, the thread waits on, uninterruptibly, until there
 * is an answer: give one, so that nobody depends on the daemon to die. If not, the daemon may know what to do with it;
 * the read itself must not fail because of a timer or a child's end.
 *
 * If the request is not here, it has been answered, or another reader has it in its hands: let the kernel say it again.
 */
static void interrupt(struct lane *lane, const struct fuse_in_header *request, uint32_t device) {
    const struct fuse_interrupt_in *argument = (const void *)(request + 1);
    if (request->len < sizeof *request + sizeof *argument)
        return;
    COUNT(lane, interrupts);
    struct kept *kept = kept_find(&lane->kept, argument->unique);
    if (!kept)
        return answer_error(lane, device, request->unique, EAGAIN);
    kept->interrupted = true; /* the kernel tells it once: later looks find out whether a SIGKILL follows */
    if (is_killed(kept)) {
        COUNT(lane, answered_killed);
        answer_kept(lane, argument->unique, EINTR);
    } else if (kept->state == KEPT_SENT && !is_read(kept)) { /* libfuse knows nothing of reads */
        pass_unanswered(lane, request);
    }
}

/* The one place where it is decided who deals with a request that is no hit. */
static void dispatch(struct lane *lane, const struct fuse_in_header *request, uint32_t device) {
    switch (request->opcode) {
    case FUSE_INIT:
        return keep_init(lane, request, device);
    case FUSE_INTERRUPT:
        return interrupt(lane, request, device);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_NOTIFY_REPLY:
        return pass_unanswered(lane, request);
    case FUSE_FLUSH:
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        /*
         * Nothing is ever unwritten. ENOSYS: the kernel takes it for a success, and never asks again; so no close waits
         * for a daemon.
         */
        return answer_error(lane, device, request->unique, ENOSYS);
    default:
        return pass_on(lane, request, device);
    }
}

/* Carry one request from the kernel. */
void carry_request(struct lane *lane, const struct fuse_in_header *request, size_t length, uint32_t device) {
    COUNT(lane, requests);
    if (length < sizeof *request || request->len != length) {
        COUNT(lane, requests_malformed);
        return;
    }
    atomic_fetch_add_explicit(&lane->passed_on[request->opcode % OPCODES], 1, memory_order_relaxed);
    pthread_mutex_lock(&lane->mutex);
    dispatch(lane, request, device);
    pthread_mutex_unlock(&lane->mutex);
}

/* ---- Replies ---- */

static void queue_notification(struct lane *lane, const struct fuse_out_header *message) {
    size_t size = sizeof(struct notification) + message->len;
    struct notification *notification = NULL;
    if (lane->notification_bytes + size <= NOTIFICATION_LIMIT_BYTES)
        notification = malloc(size);
    if (!notification) {
        COUNT(lane, notifications_dropped);
        return;
    }
    notification->next = NULL;
    notification->length = message->len;
    memcpy(notification->message, message, message->len);
    lane->notification_bytes += size;
    *lane->notifications_end = notification;
    lane->notifications_end = &notification->next;
    pthread_cond_broadcast(&lane->changed);
}

/* What the lane wants otherwise than libfuse: sizes that fit its buffers and the sockets. */
static void amend_init(struct lane *lane, struct fuse_out_header *reply) {
    struct fuse_init_out *init = (void *)(reply + 1);
    if (reply->error || reply->len < sizeof *reply + FUSE_COMPAT_22_INIT_OUT_SIZE)
        return;
    if (init->max_write > MAX_WRITE)
        init->max_write = MAX_WRITE;
    if (lane->max_background)
        init->max_background = (uint16_t)lane->max_background;
    uint32_t congested = lane->max_background / 4 * 3;
    if (lane->max_background)
        init->congestion_threshold = (uint16_t)(congested < CONGESTED_AT ? congested : CONGESTED_AT);
    if (reply->len >= sizeof *reply + sizeof *init && init->flags & FUSE_MAX_PAGES)
        init->max_pages = (uint16_t)((lane->max_read + PAGE_SIZE - 1) / PAGE_SIZE);
}

static void handle_init_reply(struct lane *lane, struct daemon *daemon, struct fuse_out_header *reply) {
    if (daemon->state != DAEMON_INIT_SENT) {
        COUNT(lane, replies_unknown);
        return;
    }
    if (reply->error) {
        shutdown(daemon->fd, SHUT_RDWR); /* it can't serve; the supervisor hears of it as of a death */
        return;
    }
    if (!lane->init_answered) {
        lane->init_answered = true;
        amend_init(lane, reply);
        answer(lane, lane->init_device, reply, reply + 1);
    }
    daemon->state = DAEMON_READY;
    lane->current = daemon;
    send_waiting(lane);
    tell(lane, EVENT_INIT_ANSWERED);
}

/* The store is away, and whoever asks shall wait. */
static void hold(struct lane *lane, uint64_t unique) {
    struct kept *kept = kept_find(&lane->kept, unique);
    COUNT(lane, given_back);
    if (kept)
        kept_hold(&lane->kept, kept);
    else
        COUNT(lane, replies_unknown);
}

static void handle_reply(struct lane *lane, struct daemon *daemon, size_t length) {
    struct fuse_out_header *reply = (void *)lane->reply_buffer;
    if (length < sizeof *reply || reply->len != length) {
        COUNT(lane, replies_malformed);
        return;
    }
    if (length > (size_t)lane->max_read + REPLY_OVERHEAD) {
        COUNT(lane, replies_oversize);
        reply->len = sizeof *reply;
        reply->error = -EIO;
    }
    if (reply->unique == 0)
        return queue_notification(lane, reply);
    if (reply->unique & INTERRUPT_BIT)
        return; /* libfuse asks to be interrupted again: it has been told */
    if (reply->unique == lane->init_unique)
        return handle_init_reply(lane, daemon, reply);
    if (reply->error == -HOLD_ERROR)
        return hold(lane, reply->unique);
    uint32_t device;
    if (!take(lane, reply->unique, &device)) {
        COUNT(lane, replies_unknown);
    } else {
        COUNT(lane, replies);
        answer(lane, device, reply, reply + 1);
    }
    send_waiting(lane);
}

static void close_daemon(struct daemon *daemon) {
    close(daemon->fd);
    if (daemon->reads_fd >= 0)
        close(daemon->reads_fd);
    free(daemon);
}

/* All that it had and has not answered waits for the next daemon, or goes to the current one (after a hand-over). */
static void daemon_lost(struct lane *lane, int slot) {
    struct daemon *daemon = lane->daemons[slot];
    COUNT(lane, daemons_lost);
    for (struct kept *kept = first_of(lane, KEPT_SENT), *next; kept; kept = next) {
        next = kept->next;
        if (kept->daemon_serial == daemon->serial)
            kept_move(&lane->kept, kept, KEPT_WAITING, 0);
    }
    lane->daemons[slot] = NULL;
    if (lane->current == daemon) {
        lane->current = NULL;
        lane->detached_at_ns = now_ns();
    }
    close_daemon(daemon);
    send_waiting(lane);
    tell(lane, EVENT_DAEMON_LOST);
    pthread_cond_broadcast(&lane->changed);
}

/* Carry one reply of a daemon, or take note of its end. False: there is none now. */
static bool carry_reply(struct lane *lane, int slot) {
    struct daemon *daemon = lane->daemons[slot];
    size_t size = lane->max_read + REPLY_OVERHEAD;
    ssize_t length = recv(daemon->fd, lane->reply_buffer, size, MSG_TRUNC | MSG_DONTWAIT);
    /* ECONNRESET comes once, from a daemon that died with unread requests; its replies still follow */
    if (length < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET || errno == ENOMEM))
        return false;
    pthread_mutex_lock(&lane->mutex);
    if (length > 0)
        handle_reply(lane, daemon, (size_t)length);
    else
        daemon_lost(lane, slot);
    pthread_mutex_unlock(&lane->mutex);
    return length > 0;
}

/* Carry what a daemon has said so far, some at a time; return how many replies it was. */
static int carry_replies(struct lane *lane, int slot) {
    int count = 0;
    while (count < BATCH && carry_reply(lane, slot))
        count++;
    return count;
}

/* Take note of the reads that a daemon has answered, some at a time; return how many it was. */
static int note_answered(struct lane *lane, int slot) {
    struct daemon *daemon = lane->daemons[slot];
    uint64_t uniques[BATCH];
    ssize_t length = recv(daemon->reads_fd, uniques, sizeof uniques, MSG_DONTWAIT);
    if (length < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOMEM))
        return 0;
    if (length <= 0 || length % (ssize_t)sizeof *uniques) { /* it is ending, or speaks another language */
        if (length > 0)
            COUNT(lane, replies_malformed);
        shutdown(daemon->fd, SHUT_RDWR); /* so the other socket tells its end */
        return 0;
    }
    int count = (int)(length / (ssize_t)sizeof *uniques);
    pthread_mutex_lock(&lane->mutex);
    for (int i = 0; i < count; i++) {
        uint32_t device;
        if (uniques[i] & GIVEN_BACK_BIT)
            hold(lane, uniques[i] & ~GIVEN_BACK_BIT);
        else if (take(lane, uniques[i], &device))
            COUNT(lane, replies_direct);
        else
            COUNT(lane, replies_unknown);
    }
    send_waiting(lane);
    pthread_mutex_unlock(&lane->mutex);
    return count;
}

/* ---- Notifications ---- */

static void *notifier_loop(void *argument) {
    struct lane *lane = argument;
    pthread_mutex_lock(&lane->mutex);
    while (!atomic_load(&lane->stop)) {
        struct notification *notification = lane->notifications;
        if (!notification) {
            pthread_cond_wait(&lane->changed, &lane->mutex);
            continue;
        }
        lane->notifications = notification->next;
        if (!lane->notifications)
            lane->notifications_end = &lane->notifications;
        pthread_mutex_unlock(&lane->mutex);
        if (write(lane->devices[0], notification->message, notification->length) >= 0)
            COUNT(lane, notifications);
        else if (errno != ENOENT)
            COUNT(lane, notifications_refused);
        pthread_mutex_lock(&lane->mutex);
        lane->notification_bytes -= notification->length + sizeof *notification;
        free(notification);
    }
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* ---- Deadlines and killed readers, at each tick ---- */

/* What a request gets without a daemon. A close must not fail: there is nothing that it could lose. */
static int failure_of(const struct kept *kept) {
    bool is_close = kept->opcode == FUSE_RELEASE || kept->opcode == FUSE_RELEASEDIR;
    return is_close ? 0 : EIO;
}

/* Does this request wait for as long as it takes? A daemon has said so, or the board does of its image. */
static bool waits_on(struct lane *lane, const struct kept *kept) {
    struct fuse_in_header request;
    struct board_view image;
    memcpy(&request, kept->body, sizeof request);
    bool needs_store = kept->opcode == FUSE_READ || kept->opcode == FUSE_OPEN;
    return kept->is_held || (needs_store && board_find_image(lane->board, request.nodeid, &image) && image.holds);
}

/* Requests that are too old altogether: daemons come and die, and none lives long enough to answer or to be absent. */
static void check_age(struct lane *lane, enum kept_state state, uint64_t now) {
    uint64_t limit = lane->request_deadline_ns + 2 * lane->answer_deadline_ns;
    if (!lane->request_deadline_ns || !lane->answer_deadline_ns)
        return;
    for (struct kept *kept = first_of(lane, state), *next; kept; kept = next) {
        next = kept->next;
        if (now > kept->came_ns + limit && !waits_on(lane, kept)) {
            COUNT(lane, answered_outage);
            answer_kept(lane, kept->unique, failure_of(kept));
        }
    }
}

/* Requests whose deadline has passed. */
static void check_deadlines(struct lane *lane, uint64_t now) {
    uint64_t limit = lane->request_deadline_ns;
    for (struct kept *kept = first_of(lane, KEPT_WAITING), *next; kept && limit && !lane->current; kept = next) {
        next = kept->next;
        uint64_t since = kept->since_ns > lane->detached_at_ns ? kept->since_ns : lane->detached_at_ns;
        if (now > since + limit && !waits_on(lane, kept)) {
            COUNT(lane, answered_outage);
            answer_kept(lane, kept->unique, failure_of(kept));
        }
    }
    limit = lane->answer_deadline_ns;
    struct kept *last = lane->kept.lists[KEPT_SENT].last, *kept = first_of(lane, KEPT_SENT);
    for (struct kept *next = NULL; kept && limit && lane->current; kept = next) {
        next = kept == last ? NULL : kept->next; /* what is sent again goes to the end of the list */
        if (now <= kept->since_ns + limit)
            continue;
        if (kept->sent_again && !waits_on(lane, kept)) {
            COUNT(lane, answered_late);
            answer_kept(lane, kept->unique, failure_of(kept));
        } else { /* the reply may be lost: the daemon got no memory for its message */
            COUNT(lane, resent);
            kept->sent_again = true;
            send_kept(lane, kept);
        }
    }
}

/*
 * Readers that were killed without an INTERRUPT: after another signal (the kernel tells only the first), or in a read
 * with O_DIRECT (the kernel makes asynchronous requests of it, and waits for those uninterruptibly). A look into /proc
 * costs 20 us: few a tick, and each request the more seldom the more there are.
 */
static void answer_killed(struct lane *lane, enum kept_state state, uint64_t now, int *checks) {
    uint64_t period_ns = TICK_NS * (1 + lane->kept.count / CHECKS_PER_TICK);
    for (struct kept *kept = first_of(lane, state), *next; kept && *checks > 0; kept = next) {
        next = kept->next;
        bool is_suspect = kept->interrupted || kept->opcode == FUSE_READ;
        if (!is_suspect || now < kept->checked_ns + period_ns)
            continue;
        --*checks;
        kept->checked_ns = now;
        if (is_killed(kept) || is_exiting(kept->pid)) {
            COUNT(lane, answered_killed);
            answer_kept(lane, kept->unique, EINTR);
        }
    }
}

/* Hits whose disk does not answer: the daemon can fetch their chunks again. Whoever is first answers. */
static void check_disk(struct lane *lane, uint64_t now) {
    for (struct kept *kept = first_of(lane, KEPT_ON_DISK), *next; kept; kept = next) {
        next = kept->next;
        if (now <= kept->came_ns + lane->disk_patience_ns)
            break; /* the oldest come first */
        COUNT(lane, disk_late);
        pass_to_daemon(lane, kept);
    }
}

/* It may be that the store is back. Those that were given back longest ago are the first. */
static void ask_again(struct lane *lane) {
    struct kept *kept;
    for (int count = 0; count < HELD_PER_TICK && lane->current && (kept = first_of(lane, KEPT_HELD)); count++)
        kept_move(&lane->kept, kept, KEPT_WAITING, 0);
}

static void tick(struct lane *lane, uint64_t now) {
    int checks = CHECKS_PER_TICK;
    pthread_mutex_lock(&lane->mutex);
    if (lane->kept.bytes >= lane->kept_limit_bytes)
        COUNT(lane, throttled);
    send_init(lane);
    ask_again(lane);
    send_waiting(lane);
    check_deadlines(lane, now);
    check_disk(lane, now);
    for (enum kept_state state = 0; state < KEPT_STATES; state++) {
        check_age(lane, state, now);
        answer_killed(lane, state, now, &checks);
    }
    pthread_mutex_unlock(&lane->mutex);
}

/* ---- The carrier ---- */

enum { WAKE, REPLIES, ANSWERED = REPLIES + MAX_DAEMONS, POLLS = ANSWERED + MAX_DAEMONS };

static void fill_polls(struct lane *lane, struct pollfd polls[POLLS]) {
    pthread_mutex_lock(&lane->mutex);
    polls[WAKE] = (struct pollfd){.fd = lane->wake_fd, .events = POLLIN};
    for (int i = 0; i < MAX_DAEMONS; i++) {
        struct daemon *daemon = lane->daemons[i];
        polls[REPLIES + i] = (struct pollfd){.fd = daemon ? daemon->fd : -1, .events = POLLIN};
        polls[ANSWERED + i] = (struct pollfd){.fd = daemon ? daemon->reads_fd : -1, .events = POLLIN};
    }
    pthread_mutex_unlock(&lane->mutex);
}

/* Carry what daemons have said; return how many replies and answers it was. */
static int carry_all(struct lane *lane, const struct pollfd polls[POLLS]) {
    int carried = 0;
    for (int i = 0; i < MAX_DAEMONS; i++) { /* first what was answered: a daemon that has died is gone after the rest */
        if (polls[ANSWERED + i].fd >= 0 && polls[ANSWERED + i].revents)
            carried += note_answered(lane, i);
        if (polls[REPLIES + i].fd >= 0 && polls[REPLIES + i].revents)
            carried += carry_replies(lane, i);
    }
    return carried;
}

static void *carrier_loop(void *argument) {
    struct lane *lane = argument;
    struct pollfd polls[POLLS];
    uint64_t next_tick_ns = 0, last_carried_ns = 0, woken;
    setpriority(PRIO_PROCESS, (id_t)gettid(), CARRIER_NICE); /* as the readers do */
    while (!atomic_load(&lane->stop)) {
        fill_polls(lane, polls);
        if (poll(polls, POLLS, (int)(TICK_NS / 1000000)) < 0)
            continue;
        int carried = carry_all(lane, polls);
        if (polls[WAKE].revents && read(lane->wake_fd, &woken, sizeof woken) < 0)
            continue;
        uint64_t now = now_ns();
        if (now >= next_tick_ns) {
            next_tick_ns = now + TICK_NS;
            tick(lane, now);
        }
        bool is_busy = carried && now < last_carried_ns + BUSY_NS;
        last_carried_ns = carried ? now : last_carried_ns;
        if (is_busy)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    return NULL;
}

/* ---- Life ---- */

/* More open files of the same connection, so that readers do not share one; return how many there are. */
uint32_t clone_devices(int fuse_fd, int *devices, uint32_t wanted) {
    uint32_t count = 1, source = (uint32_t)fuse_fd;
    for (devices[0] = fuse_fd; count < wanted && count < MAX_DEVICES; count++) {
        devices[count] = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (devices[count] < 0)
            break;
        if (ioctl(devices[count], FUSE_DEV_IOC_CLONE, &source) < 0) {
            close(devices[count]);
            break;
        }
    }
    return count;
}

int start_thread(pthread_t *thread, void *(*loop)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGRTMIN); /* ends a read of /dev/fuse: see crew_stop */
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the supervisor's main thread */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int error = pthread_create(thread, &attributes, loop, argument);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/*
 * Wait for the end of a thread that lane.stop tells to end. A signal can come just before it begins to wait in the kernel,
 * so it is sent until the thread has ended. False: it hangs, and needs what it uses for ever.
 */
bool end_thread(pthread_t thread, int *tries) {
    for (; *tries > 0; --*tries) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += STOP_TRY_NS;
        until.tv_sec += until.tv_nsec / (long)SECOND_NS;
        until.tv_nsec %= (long)SECOND_NS;
        pthread_kill(thread, SIGRTMIN);
        if (!pthread_timedjoin_np(thread, NULL, &until))
            return true;
    }
    return false;
}

struct lane *lane_new(const int *devices, uint32_t device_count, struct board *board, uint32_t max_read) {
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&lane->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&lane->mutex, NULL);
    pthread_mutex_init(&lane->crew.mutex, NULL);
    pthread_cond_init(&lane->crew.turn, NULL);
    lane->notifications_end = &lane->notifications;
    lane->reply_pages = aligned_alloc(PAGE_SIZE, PAGE_SIZE + max_read / PAGE_SIZE * PAGE_SIZE + 2 * REPLY_OVERHEAD);
    lane->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lane->board = board;
    lane->device_count = device_count;
    memcpy(lane->devices, devices, device_count * sizeof *devices);
    lane->max_read = max_read;
    lane->reply_buffer = lane->reply_pages + PAGE_SIZE - sizeof(struct fuse_out_header);
    if (!lane->reply_pages || lane->event_fd < 0 || lane->wake_fd < 0)
        abort(); /* at the start of the supervisor: nothing is mounted yet */
    return lane;
}

static void wake_carrier(struct lane *lane) {
    uint64_t one = 1;
    if (write(lane->wake_fd, &one, sizeof one) < 0) {
        /* it has been woken often enough */
    }
}

int lane_start(struct lane *lane) {
    int error = start_thread(&lane->carrier, carrier_loop, lane);
    if (error)
        return error;
    lane->started = true;
    disk_start(lane);
    if ((error = start_thread(&lane->notifier, notifier_loop, lane)) || (error = crew_start(lane)))
        abort(); /* half a lane serves nobody */
    return 0;
}

/* Takes the sockets; reads_fd is -1 for a daemon that takes reads like all else. */
int lane_attach(struct lane *lane, int fd, int reads_fd) {
    struct daemon *daemon = calloc(1, sizeof *daemon);
    int error = daemon ? EBUSY : ENOMEM;
    pthread_mutex_lock(&lane->mutex);
    for (int i = 0; daemon && i < MAX_DAEMONS; i++) {
        if (lane->daemons[i])
            continue;
        *daemon = (struct daemon){.fd = fd, .reads_fd = reads_fd, .serial = ++lane->last_serial, .state = DAEMON_NEW};
        lane->daemons[i] = daemon;
        COUNT(lane, daemons_attached);
        send_init(lane);
        error = 0;
        break;
    }
    pthread_mutex_unlock(&lane->mutex);
    wake_carrier(lane);
    if (error) {
        close(fd);
        if (reads_fd >= 0)
            close(reads_fd);
        free(daemon);
    }
    return error;
}

static bool has_daemons(struct lane *lane) {
    bool found = false;
    for (int i = 0; i < MAX_DAEMONS; i++)
        found |= lane->daemons[i] != NULL;
    return found;
}

/* Take leave of all daemons: their replies that are here are used, what they have not answered waits. */
void lane_detach(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    for (int i = 0; i < MAX_DAEMONS; i++)
        if (lane->daemons[i])
            shutdown(lane->daemons[i]->fd, SHUT_RDWR);
    while (lane->started && has_daemons(lane))
        pthread_cond_wait(&lane->changed, &lane->mutex);
    pthread_mutex_unlock(&lane->mutex);
}

static bool join_within_a_second(pthread_t thread) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

/* Ends the threads and closes /dev/fuse (which ends the mount, if there still is one and no daemon has it open). */
void lane_close(struct lane *lane) {
    lane_detach(lane);
    pthread_mutex_lock(&lane->mutex);
    atomic_store(&lane->stop, true);
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->mutex);
    wake_carrier(lane);
    bool joined = true;
    if (lane->started) {
        pthread_join(lane->carrier, NULL);
        joined = join_within_a_second(lane->notifier);
        joined = crew_stop(lane) && disk_stop(lane) && joined;
    }
    for (uint32_t i = 0; i < lane->device_count; i++)
        close(lane->devices[i]);
    close(lane->event_fd);
    close(lane->wake_fd);
    if (!joined)
        return; /* a notification hangs in the kernel, or a disk: leave that thread what it uses */
    kept_free_all(&lane->kept);
    for (struct notification *notification = lane->notifications, *next; notification; notification = next) {
        next = notification->next;
        free(notification);
    }
    for (int class = 0; class < BOARD_CLASSES; class++) {
        struct segment *segment = &lane->segments[class];
        if (atomic_load(&segment->is_there))
            close(segment->fd);
        if (segment->has_direct_fd)
            close(segment->direct_fd);
    }
    munmap(lane->board, BOARD_BYTES);
    free(lane->init);
    free(lane->reply_pages);
    for (int i = 0; i < MAX_DAEMONS; i++) /* only if it never ran */
        if (lane->daemons[i])
            close_daemon(lane->daemons[i]);
    pthread_mutex_destroy(&lane->mutex);
    pthread_cond_destroy(&lane->changed);
    pthread_mutex_destroy(&lane->crew.mutex);
    pthread_cond_destroy(&lane->crew.turn);
    free(lane);
}
