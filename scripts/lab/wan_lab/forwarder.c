/* The wide-area laboratory's network: carries IPv4 packets between TUN devices and treats each as the link that
 * it takes would. Driven by wan_lab_forwarder.py.
 *
 * A packet from machine a to machine b waits for a's uplink, then for the link a->b (serialisation at the
 * rate of each, drop-tail queues), travels for the link's latency with jitter, and waits for b's downlink. It
 * may be lost by chance, and is lost where the link is cut, also if that happens while it is on its way. The
 * packets of a link keep their order. One thread: everything below wan_lab_run holds the lock.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MACHINES 64
#define MAX_PACKET 65536
#define BURST 64                          /* packets read from one device before the others have their turn */
#define QUEUE_NS 100000000LL              /* a queue holds what its link carries in so much time, then drops */
#define QUEUE_BYTES 65536                 /* but this much at least */
#define HELD_BYTES (512LL * 1024 * 1024)  /* of packets in all queues together */
#define FLOWS 4096                        /* remembered for each machine that takes no strangers */
#define FLOW_NS 120000000000LL            /* since its last packet, until a flow is forgotten */
#define EARLY_NS 100000LL                 /* a sleeper wakes so much late: the thread wakes before, and polls */
#define SPARSE_NS 500000LL                /* but not where a packet follows the other */
#define SECOND 1000000000LL

typedef struct {
    int64_t packets, bytes; /* delivered, IP headers included */
    int64_t lost, overflowed, cut, refused; /* packets that were not */
} wan_counters;

typedef struct {
    int64_t latency_ns, jitter_ns;
    double bits_per_s, loss; /* 0 bits_per_s: without limit; loss 0 to 1 */
    int is_cut;
    int64_t free_at, last_at; /* when the last packet has left; when it arrives */
    wan_counters count;
} wan_link;

typedef struct {
    uint64_t key;
    int64_t seen_at;
} wan_flow;

typedef struct {
    int fd;
    uint32_t address;
    double up_bits_per_s, down_bits_per_s;
    int64_t up_free_at, down_free_at;
    wan_flow *flows; /* NULL: takes packets from everybody */
} wan_machine;

typedef struct {
    int from, to, size;
    int64_t took_ns; /* between its first bit and its last */
    uint8_t data[];
} wan_packet;

typedef struct {
    int64_t at;
    uint64_t number; /* packets of the same time keep their order */
    int delivered;   /* at the machine, not only at its downlink */
    wan_packet *packet;
} wan_event;

typedef struct {
    int64_t delivered, late_ns, latest_ns, cpu_ns;
    int realtime; /* whether the system let the thread run before all others */
} wan_timing;

typedef struct {
    pthread_mutex_t lock;
    int epoll, timer, stop, machines;
    int multicast; /* reaches everybody, as on one switch; else nobody, as on the internet */
    uint64_t random, number;
    int64_t held_bytes, last_event;
    wan_event *heap;
    int events, room;
    wan_timing timing;
    wan_machine machine[MACHINES];
    wan_link link[MACHINES][MACHINES];
} wan_lab;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static double chance(wan_lab *lab) { /* xorshift64*: [0, 1) */
    uint64_t x = lab->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    lab->random = x;
    return (double)((x * 0x2545F4914F6CDD1DULL) >> 11) / 9007199254740992.0;
}

/* The heap of what happens next. */

static int before(const wan_event *a, const wan_event *b) {
    return a->at < b->at || (a->at == b->at && a->number < b->number);
}

static int push(wan_lab *lab, int64_t at, int delivered, wan_packet *packet) {
    if (lab->events == lab->room) {
        int room = lab->room ? 2 * lab->room : 1024;
        wan_event *heap = realloc(lab->heap, room * sizeof *heap);
        if (!heap) return 0;
        lab->heap = heap;
        lab->room = room;
    }
    wan_event event = {at, lab->number++, delivered, packet};
    int i = lab->events++;
    while (i && before(&event, &lab->heap[(i - 1) / 2])) {
        lab->heap[i] = lab->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    lab->heap[i] = event;
    return 1;
}

static wan_event pop(wan_lab *lab) {
    wan_event first = lab->heap[0], last = lab->heap[--lab->events];
    int i = 0;
    for (;;) {
        int child = 2 * i + 1;
        if (child >= lab->events) break;
        if (child + 1 < lab->events && before(&lab->heap[child + 1], &lab->heap[child])) child++;
        if (!before(&lab->heap[child], &last)) break;
        lab->heap[i] = lab->heap[child];
        i = child;
    }
    lab->heap[i] = last;
    return first;
}

/* Machines that take no strangers: packets come in only where one has gone out, as through a NAT. */

static uint64_t flow_key(const uint8_t *ip, int size, int outgoing) {
    int header = (ip[0] & 15) * 4;
    uint32_t remote;
    uint16_t ports[2] = {0, 0}; /* source, destination */
    memcpy(&remote, ip + (outgoing ? 16 : 12), 4);
    if ((ip[9] == 6 || ip[9] == 17) && size >= header + 4) memcpy(ports, ip + header, 4);
    uint16_t local_port = ports[outgoing ? 0 : 1], remote_port = ports[outgoing ? 1 : 0];
    uint64_t key = ((uint64_t)remote << 32 | (uint64_t)local_port << 16 | remote_port) ^ (uint64_t)ip[9] << 56;
    key *= 0x9E3779B97F4A7C15ULL;
    return key ? key : 1;
}

static wan_flow *find_flow(wan_machine *machine, uint64_t key, int64_t now, int add) {
    wan_flow *oldest = NULL;
    for (int i = 0; i < 8; i++) {
        wan_flow *flow = &machine->flows[((key >> 40) + i) % FLOWS];
        if (flow->key == key) return !add && now - flow->seen_at > FLOW_NS ? NULL : flow;
        if (!oldest || flow->seen_at < oldest->seen_at) oldest = flow;
    }
    if (add) oldest->key = key;
    return add ? oldest : NULL;
}

/* The way of a packet. */

static void drop(wan_lab *lab, wan_packet *packet, int64_t *why) {
    lab->held_bytes -= packet->size;
    ++*why;
    free(packet);
}

/* The bits of a packet pass a point between two times; a queue there moves them on. */
typedef struct {
    int64_t first, last;
} wan_passage;

/* 0 if the queue is full. A packet that need not wait goes on while it still comes in. */
static int through(int64_t *free_at, double bits_per_s, wan_passage *bits, int size) {
    if (bits_per_s <= 0) return 1;
    int64_t start = *free_at > bits->first ? *free_at : bits->first;
    int64_t took = (int64_t)(size * 8 * 1e9 / bits_per_s), least = (int64_t)(QUEUE_BYTES * 8 * 1e9 / bits_per_s);
    if (start - bits->first > (least > QUEUE_NS ? least : QUEUE_NS)) return 0;
    *free_at = start + took;
    bits->first = start;
    if (bits->last < *free_at) bits->last = *free_at;
    return 1;
}

static void enter(wan_lab *lab, wan_packet *packet, int64_t now) {
    wan_machine *from = &lab->machine[packet->from], *to = &lab->machine[packet->to];
    wan_link *link = &lab->link[packet->from][packet->to];
    if (from->flows) find_flow(from, flow_key(packet->data, packet->size, 1), now, 1)->seen_at = now;
    if (link->is_cut) return drop(lab, packet, &link->count.cut);
    if (to->flows && !find_flow(to, flow_key(packet->data, packet->size, 0), now, 0))
        return drop(lab, packet, &link->count.refused);
    wan_passage bits = {now, now};
    if (lab->held_bytes > HELD_BYTES || !through(&from->up_free_at, from->up_bits_per_s, &bits, packet->size) ||
        !through(&link->free_at, link->bits_per_s, &bits, packet->size))
        return drop(lab, packet, &link->count.overflowed);
    if (link->loss > 0 && chance(lab) < link->loss) return drop(lab, packet, &link->count.lost);
    packet->took_ns = bits.last - bits.first;
    int64_t at = bits.last + link->latency_ns;
    if (link->jitter_ns) at += (int64_t)((2 * chance(lab) - 1) * link->jitter_ns);
    if (at < now) at = now;
    if (at < link->last_at) at = link->last_at;
    link->last_at = at;
    if (!push(lab, at, 0, packet)) drop(lab, packet, &link->count.overflowed);
}

static void happen(wan_lab *lab, wan_event event, int64_t now) {
    wan_packet *packet = event.packet;
    wan_machine *to = &lab->machine[packet->to];
    wan_link *link = &lab->link[packet->from][packet->to];
    if (link->is_cut) return drop(lab, packet, &link->count.cut);
    if (!event.delivered && to->down_bits_per_s > 0) {
        wan_passage bits = {event.at - packet->took_ns, event.at};
        if (!through(&to->down_free_at, to->down_bits_per_s, &bits, packet->size))
            return drop(lab, packet, &link->count.overflowed);
        if (bits.last > now) {
            if (!push(lab, bits.last, 1, packet)) drop(lab, packet, &link->count.overflowed);
            return;
        }
        event.at = bits.last;
    }
    if (write(to->fd, packet->data, packet->size) != packet->size)
        return drop(lab, packet, &link->count.overflowed);
    int64_t late = now - event.at;
    lab->timing.delivered++;
    lab->timing.late_ns += late;
    if (late > lab->timing.latest_ns) lab->timing.latest_ns = late;
    link->count.bytes += packet->size;
    drop(lab, packet, &link->count.packets);
}

static void read_from(wan_lab *lab, int from) {
    static __thread uint8_t data[MAX_PACKET];
    for (int i = 0; i < BURST; i++) {
        ssize_t size = read(lab->machine[from].fd, data, sizeof data);
        if (size < 20) return; /* EAGAIN, or no IP packet */
        if (data[0] >> 4 != 4) continue;
        uint32_t address;
        memcpy(&address, data + 16, 4);
        int to_all = lab->multicast && data[16] >> 4 == 14;
        for (int to = 0; to < lab->machines; to++) {
            if (to == from || (lab->machine[to].address != address && !to_all)) continue;
            wan_packet *packet = malloc(sizeof *packet + size);
            if (!packet) break;
            *packet = (wan_packet){from, to, (int)size, 0};
            memcpy(packet->data, data, size);
            lab->held_bytes += size;
            enter(lab, packet, now_ns(CLOCK_MONOTONIC));
            if (!to_all) break;
        }
    }
}

/* For Python. */

wan_lab *wan_lab_new(uint64_t seed, int multicast) {
    wan_lab *lab = calloc(1, sizeof *lab);
    if (!lab) return NULL;
    lab->multicast = multicast;
    pthread_mutex_init(&lab->lock, NULL);
    lab->random = seed * 2 + 1;
    lab->epoll = epoll_create1(EPOLL_CLOEXEC);
    lab->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    lab->stop = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event timer = {EPOLLIN, {.u32 = MACHINES}}, stop = {EPOLLIN, {.u32 = MACHINES + 1}};
    if (lab->epoll < 0 || epoll_ctl(lab->epoll, EPOLL_CTL_ADD, lab->timer, &timer) ||
        epoll_ctl(lab->epoll, EPOLL_CTL_ADD, lab->stop, &stop)) {
        free(lab);
        return NULL;
    }
    return lab;
}

/* The machine's number, or -1. `fd`: its TUN device, non-blocking; `address` in network order. */
int wan_lab_add(wan_lab *lab, int fd, uint32_t address) {
    int number = -1;
    pthread_mutex_lock(&lab->lock);
    if (lab->machines < MACHINES) {
        struct epoll_event readable = {EPOLLIN, {.u32 = lab->machines}};
        lab->machine[lab->machines] = (wan_machine){.fd = fd, .address = address};
        if (!epoll_ctl(lab->epoll, EPOLL_CTL_ADD, fd, &readable)) number = lab->machines++;
    }
    pthread_mutex_unlock(&lab->lock);
    return number;
}

/* Rates of 0: without limit. Returns -1 without memory. */
int wan_lab_set_machine(wan_lab *lab, int number, double up, double down, int takes_strangers) {
    pthread_mutex_lock(&lab->lock);
    wan_machine *machine = &lab->machine[number];
    machine->up_bits_per_s = up;
    machine->down_bits_per_s = down;
    machine->up_free_at = machine->down_free_at = 0; /* what waits does so at the old rate */
    if (takes_strangers) {
        free(machine->flows);
        machine->flows = NULL;
    } else if (!machine->flows) {
        machine->flows = calloc(FLOWS, sizeof *machine->flows);
    }
    int done = takes_strangers || machine->flows ? 0 : -1;
    pthread_mutex_unlock(&lab->lock);
    return done;
}

void wan_lab_set_link(wan_lab *lab, int from, int to, int64_t latency_ns, int64_t jitter_ns, double bits_per_s,
                      double loss, int is_cut) {
    pthread_mutex_lock(&lab->lock);
    wan_link *link = &lab->link[from][to];
    link->latency_ns = latency_ns;
    link->jitter_ns = jitter_ns;
    link->bits_per_s = bits_per_s;
    link->loss = loss;
    link->is_cut = is_cut;
    link->free_at = 0;
    pthread_mutex_unlock(&lab->lock);
}

void wan_lab_counters(wan_lab *lab, int from, int to, wan_counters *counters) {
    pthread_mutex_lock(&lab->lock);
    *counters = lab->link[from][to].count;
    pthread_mutex_unlock(&lab->lock);
}

void wan_lab_timing(wan_lab *lab, wan_timing *timing) {
    pthread_mutex_lock(&lab->lock);
    *timing = lab->timing;
    lab->timing = (wan_timing){.realtime = lab->timing.realtime, .cpu_ns = lab->timing.cpu_ns};
    pthread_mutex_unlock(&lab->lock);
}

/* Forward until wan_lab_stop. */
void wan_lab_run(wan_lab *lab) {
    struct sched_param priority = {.sched_priority = 10};
    lab->timing.realtime = !pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_NAME, "wan-lab");
    int poll = 0;
    for (;;) {
        struct epoll_event ready[MACHINES + 2];
        int n = epoll_wait(lab->epoll, ready, MACHINES + 2, poll ? 0 : -1);
        if (n < 0 && errno != EINTR) return;
        pthread_mutex_lock(&lab->lock);
        for (int i = 0; i < n; i++) {
            uint64_t ticks;
            if (ready[i].data.u32 == MACHINES + 1) {
                pthread_mutex_unlock(&lab->lock);
                return;
            }
            if (ready[i].data.u32 != MACHINES)
                read_from(lab, ready[i].data.u32);
            else if (read(lab->timer, &ticks, sizeof ticks) < 0)
                continue; /* set anew since */
        }
        int64_t now = now_ns(CLOCK_MONOTONIC);
        while (lab->events && lab->heap[0].at <= now) {
            lab->last_event = lab->heap[0].at;
            happen(lab, pop(lab), now);
            now = now_ns(CLOCK_MONOTONIC);
        }
        int64_t at = lab->events ? lab->heap[0].at : 0; /* 0: no timer */
        if (at > lab->last_event + SPARSE_NS) at -= EARLY_NS;
        if (!(poll = at && at <= now)) {
            struct itimerspec when = {.it_value = {at / SECOND, at % SECOND}};
            timerfd_settime(lab->timer, TFD_TIMER_ABSTIME, &when, NULL);
        }
        lab->timing.cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
        pthread_mutex_unlock(&lab->lock);
    }
}

void wan_lab_stop(wan_lab *lab) {
    uint64_t one = 1;
    if (write(lab->stop, &one, sizeof one) < 0) return; /* it is full: told already */
}

/* After wan_lab_run has returned. The devices are the caller's. */
void wan_lab_free(wan_lab *lab) {
    for (int i = 0; i < lab->events; i++) free(lab->heap[i].packet);
    for (int i = 0; i < lab->machines; i++) free(lab->machine[i].flows);
    close(lab->epoll);
    close(lab->timer);
    close(lab->stop);
    pthread_mutex_destroy(&lab->lock);
    free(lab->heap);
    free(lab);
}
