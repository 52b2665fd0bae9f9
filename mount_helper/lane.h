/* The lane's parts and what they share. lane.c says what it is and which thread does what. */
#ifndef CACHEFS_LANE_H
#define CACHEFS_LANE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "board.h"

#define HASH_SIZE 4096 /* buckets; uniques count up in steps of 2, so they spread evenly */
#define INLINE_SIZE 400 /* bytes: READ has 80, LOOKUP at most 296 */
#define SLAB_SIZE 64    /* kept requests allocated at a time */
#define MAX_WRITE (128 * 1024)
#define REQUEST_SIZE (MAX_WRITE + 64 * 1024) /* the kernel refuses less than max_write + 4096; xattrs have 64 KiB */
#define PAGE_SIZE 4096
#define MAX_READ (1 << 20)
#define REPLY_OVERHEAD PAGE_SIZE
#define MAX_DAEMONS 4  /* attached at once: one, and for a moment its successor */
#define MAX_DEVICES 16 /* open files of /dev/fuse: one for each thread that reads there */
#define OPCODES 64
#define HOLD_ERROR 600 /* of a daemon's reply; the kernel knows no such error, and would refuse it */
#define SECOND_NS 1000000000ULL

enum event { EVENT_INIT_ANSWERED = 1, EVENT_DAEMON_LOST = 2, EVENT_UNMOUNTED = 4 };

#define COUNTERS_OF_LANE(X)                                                                                            \
    X(requests)                /* read from the kernel */                                                             \
    X(replies)                 /* of the daemon, written to the kernel by the lane */                                 \
    X(replies_direct)          /* of the daemon, written to the kernel by itself */                                   \
    X(resent)                  /* sent again: their daemon was lost or gave them back, or a deadline passed */        \
    X(daemons_attached)        /* since the mount */                                                                  \
    X(daemons_lost)                                                                                                    \
    X(notifications)           /* written to the kernel */                                                            \
    X(notifications_dropped)   /* the queue was full */                                                               \
    X(notifications_refused)   /* by the kernel; ENOENT (it does not know the inode or name) is not counted */        \
    X(replies_unknown)         /* dropped: the request had been answered already */                                   \
    X(replies_malformed)       /* dropped */                                                                          \
    X(replies_oversize)        /* larger than the buffer: answered with EIO */                                        \
    X(requests_oversize)       /* larger than a message: answered with EIO */                                         \
    X(requests_deferred)       /* the daemon's socket was full: sent later */                                         \
    X(unanswerable_dropped)    /* FORGET and the like, while there was no daemon or no room */                        \
    X(kernel_gave_up)          /* replies that the kernel did not want any more (ENOENT) */                           \
    X(write_errors)            /* other errors of write to the kernel */                                              \
    X(requests_malformed)                                                                                              \
    X(interrupts)              /* INTERRUPT requests */                                                               \
    X(given_back)              /* by a daemon, because the store is away and the image's readers shall wait */        \
    X(answered_killed)         /* answered here with EINTR: the reader was killed */                                  \
    X(answered_outage)         /* answered here with EIO: no daemon for request_deadline_s */                         \
    X(answered_late)           /* answered here with EIO: the daemon did not answer, twice */                         \
    X(disk_direct)             /* hits that were read past the page cache */                                          \
    X(disk_late)               /* hits given to the daemon because the disk did not answer in time */                 \
    X(throttled)               /* ticks at which requests were left in the kernel: too many are kept */

struct lane_counters {
#define X(name) atomic_ullong name;
    COUNTERS_OF_LANE(X)
#undef X
};

/* Where a kept request is: nobody has it; a daemon; the disk; a daemon gave it back. */
enum kept_state { KEPT_WAITING, KEPT_SENT, KEPT_ON_DISK, KEPT_HELD, KEPT_STATES };

/* A request that the kernel waits for. Under lane.mutex. */
struct kept {
    struct kept *next, *previous; /* in the list of its state */
    struct kept *chain;           /* in its hash bucket, or in the list of free ones */
    unsigned char *body;          /* the request: inline_body, or allocated when it is larger */
    uint64_t unique;
    uint64_t came_ns;       /* when it came */
    uint64_t since_ns;      /* when it came, or was last sent */
    uint64_t checked_ns;    /* when it came, or its reader was last looked up */
    uint64_t daemon_serial; /* of the daemon that has it */
    enum kept_state state;
    uint32_t length, opcode, pid, device; /* pid: of the thread */
    uint32_t process; /* that the thread belongs to; 0: not looked up yet */
    bool interrupted;
    bool sent_before; /* some daemon has had it */
    bool sent_again;  /* its daemon did not answer within the deadline */
    bool is_held;     /* a daemon has given it back: it has no deadline any more */
    _Alignas(8) unsigned char inline_body[INLINE_SIZE];
};

struct list {
    struct kept *first, *last;
};

struct slab {
    struct slab *next;
    struct kept entries[SLAB_SIZE];
};

struct kept_table {
    struct kept *buckets[HASH_SIZE];
    struct list lists[KEPT_STATES];
    struct kept *free_list;
    struct slab *slabs;
    uint64_t count, bytes;
    uint64_t held; /* of these: is_held */
};

/* A read, as a daemon gets it over the socket for reads; its file handle is the inode. */
struct passed_read {
    uint64_t unique, inode, offset;
    uint32_t size, device;
};
#define PASSED_READ_FORMAT "=QQQII" /* for Python's struct */
_Static_assert(sizeof(struct passed_read) == 32, "as the format says");

enum daemon_state { DAEMON_NEW, DAEMON_INIT_SENT, DAEMON_READY };

struct daemon {
    int fd;
    int reads_fd; /* of its reads, which it answers itself; -1: it takes them like all else */
    uint64_t serial;
    enum daemon_state state;
};

struct notification {
    struct notification *next;
    size_t length;
    unsigned char message[];
};

/* The threads that read requests; crew.c says how they take turns. */
struct crew {
    pthread_mutex_t mutex;
    pthread_cond_t turn;
    uint32_t wanted, most; /* threads that read requests at the same time; threads altogether */
    uint32_t started, parked, called; /* called: parked ones that were asked to read requests and are not awake yet */
    atomic_uint reading;              /* who read requests, or are called to; the others are parked or wait for the disk */
    atomic_uint waiting;              /* for the disk */
    struct reader *readers[BOARD_THREADS];
};

/* The file that slots of a class are read from. Each fd is a number for good: another file takes its place by dup3. */
struct segment {
    int fd, direct_fd; /* through the page cache; past it */
    bool has_direct_fd;
    atomic_bool is_there, is_direct; /* may fd, may direct_fd be used? */
};

struct lane {
    int event_fd; /* to the supervisor */
    int wake_fd;  /* to the carrier */
    int devices[MAX_DEVICES]; /* a request is answered through the one that it came by */
    uint32_t device_count;
    struct board *board;
    struct segment segments[BOARD_CLASSES];
    uint32_t max_read, max_background;
    uint64_t request_deadline_ns, answer_deadline_ns; /* 0: none */
    uint64_t disk_patience_ns;
    uint64_t kept_limit_bytes;
    unsigned char *reply_pages, *reply_buffer; /* the buffer begins so that the data after the header fills whole pages */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a notification, a daemon's end, stop */
    struct kept_table kept;

    unsigned char *init; /* the kernel's INIT request */
    uint32_t init_length, init_device;
    uint64_t init_unique;
    bool init_answered;

    struct daemon *daemons[MAX_DAEMONS]; /* freed by the carrier alone */
    struct daemon *current;              /* the one that gets the requests */
    uint64_t last_serial, detached_at_ns;

    struct notification *notifications, **notifications_end;
    size_t notification_bytes;

    struct crew crew;
    struct disk *disk; /* NULL: none, the crew waits for the disk */
    pthread_t carrier, notifier;
    bool started;
    atomic_bool stop, unmounted, is_full;
    atomic_uint events;
    struct lane_counters count;
    atomic_ullong passed_on[OPCODES];
};

#define COUNT(lane, name) atomic_fetch_add_explicit(&(lane)->count.name, 1, memory_order_relaxed)

uint64_t now_ns(void);

/* kept.c: the table of kept requests; all of it under lane.mutex. */
struct kept *kept_add(struct kept_table *table, const struct fuse_in_header *request, uint32_t device,
                      enum kept_state state);
struct kept *kept_find(struct kept_table *table, uint64_t unique);
/* Take a request out of the table. Its opcode: it was there, and the caller is the one who answers it. 0: it was not. */
uint32_t kept_take(struct kept_table *table, uint64_t unique, uint32_t *device);
void kept_move(struct kept_table *table, struct kept *kept, enum kept_state state, uint64_t daemon_serial);
/* A daemon gives it back. */
void kept_hold(struct kept_table *table, struct kept *kept);
void kept_free_all(struct kept_table *table);

/* lane.c */
#define STOP_TRIES 100 /* that end_thread has, altogether, for all threads of a part */
int start_thread(pthread_t *thread, void *(*loop)(void *), void *argument);
bool end_thread(pthread_t thread, int *tries);
void kernel_unmounted(struct lane *lane);
void carry_request(struct lane *lane, const struct fuse_in_header *request, size_t length, uint32_t device);
void answer(struct lane *lane, uint32_t device, struct fuse_out_header *reply, const void *payload);
void answer_error(struct lane *lane, uint32_t device, uint64_t unique, int error);
/*
 * A hit is about to wait for the disk; and what becomes of the request then: it is answered here, if nobody else has done
 * it; or the daemon gets it, if it has not got it already.
 */
bool keep_on_disk(struct lane *lane, const struct fuse_in_header *request, uint32_t device);
bool take_from_disk(struct lane *lane, uint64_t unique);
bool pass_from_disk(struct lane *lane, uint64_t unique);

/* hits.c, crew.c, disk.c */
int lane_set_segment(struct lane *lane, uint32_t number, int fd);
int crew_start(struct lane *lane);
bool crew_stop(struct lane *lane);
void disk_start(struct lane *lane);
bool disk_stop(struct lane *lane);

/* lane.c, for module.c */
uint32_t clone_devices(int fuse_fd, int *devices, uint32_t wanted);
struct lane *lane_new(const int *devices, uint32_t device_count, struct board *board, uint32_t max_read);
int lane_start(struct lane *lane);
int lane_attach(struct lane *lane, int fd, int reads_fd);
void lane_detach(struct lane *lane);
void lane_close(struct lane *lane);

#endif
