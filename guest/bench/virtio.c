// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Copyright 2026 The mini-vmm developers.

/*
 * A guest without a kernel that drives one virtio device by PCI, the way Linux does, for `cargo xtask bench`.
 * It starts at a PVH entry. The image is flat; xtask wraps it in an ELF file
 * and fills in the parameters. Sections are those of virtio 1.4.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* What xtask fills in: the same order as in xtask/src/bench/virtio.rs. */
struct parameters {
	u32 ecam;	/* where the PCI configuration space is */
	u32 work;	/* enum work */
	u32 count;	/* requests */
	u32 depth;	/* requests at once */
	u32 bytes;	/* of a request */
	u32 end_port;	/* what ends the machine */
	u32 end_value;
	u32 delay;	/* rounds of an empty loop between the first sign and the work */
};
enum work { READ_RANDOM, READ, WRITE, PING, SEND, STREAM_OUT, STREAM_IN };

extern volatile struct parameters parameters;

/* From PVH's state to 64-bit code with the first 4 GiB mapped as they are, in pages of 2 MiB. */
asm(".code32\n"
    ".section .text.entry, \"ax\"\n"
    ".globl start, parameters\n"
    "start: jmp begin\n"
    ".balign 16\n"
    "parameters: .skip 32\n"
    "begin: cli\n"
    "cld\n"
    "mov $bss_start, %edi\n"
    "mov $bss_end, %ecx\n"
    "sub %edi, %ecx\n"
    "xor %eax, %eax\n"
    "rep stosb\n"
    "mov $directories, %edi\n"
    "mov $0x83, %eax\n"
    "1: mov %eax, (%edi)\n"
    "add $8, %edi\n"
    "add $0x200000, %eax\n"
    "jnc 1b\n"
    "movl $directories + 0x0003, tables\n"
    "movl $directories + 0x1003, tables + 8\n"
    "movl $directories + 0x2003, tables + 16\n"
    "movl $directories + 0x3003, tables + 24\n"
    "movl $tables + 3, top\n"
    "mov $top, %eax\n"
    "mov %eax, %cr3\n"
    "mov $0x20, %eax\n" /* PAE */
    "mov %eax, %cr4\n"
    "mov $0xc0000080, %ecx\n" /* EFER.LME */
    "rdmsr\n"
    "or $0x100, %eax\n"
    "wrmsr\n"
    "mov %cr0, %eax\n"
    "or $0x80000000, %eax\n"
    "mov %eax, %cr0\n"
    "lgdt segments_at\n"
    "ljmp $8, $1f\n"
    ".code64\n"
    "1: mov $16, %eax\n"
    "mov %eax, %ds\n"
    "mov %eax, %es\n"
    "mov %eax, %ss\n"
    "mov $stack + 16384, %esp\n"
    "call run\n"
    "2: cli\n"
    "hlt\n"
    "jmp 2b\n"
    /* The handler of the device's interrupt: only the end of interrupt, to the local APIC. */
    "interrupt: push %rax\n"
    "mov $0xfee000b0, %eax\n"
    "movl $0, (%rax)\n"
    "pop %rax\n"
    "iretq\n"
    ".balign 8\n"
    "segments: .quad 0, 0xaf9b000000ffff, 0xcf93000000ffff\n"
    "segments_at: .word 23\n"
    ".long segments\n"
    ".text\n");
extern u8 interrupt[];

u8 stack[16384] __attribute__((aligned(16)));

static void out(u16 port, u8 value)
{
	asm volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

/* Accesses to registers and rings. */
#define AT(type, at) (*(volatile type *)(u64)(at))
static u8 get8(u32 at) { return AT(u8, at); }
static u16 get16(u32 at) { return AT(u16, at); }
static u32 get32(u32 at) { return AT(u32, at); }
static void put8(u32 at, u8 value) { AT(u8, at) = value; }
static void put16(u32 at, u16 value) { AT(u16, at) = value; }
static void put32(u32 at, u32 value) { AT(u32, at) = value; }
static void barrier(void) { asm volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc"); }

/* The end of the run by a mistake, which no measurement can overlook. */
static void fail(char what)
{
	out(0x3f8, 'E');
	out(0x3f8, what);
	out(0x3f8, '\n');
	out(parameters.end_port, parameters.end_value);
	for (;;)
		asm volatile("cli; hlt");
}

/* A sign to the host that observes the process. */
static void sign(void)
{
	out(0x3f8, '!');
}

/* The page tables, and windows of 2 MiB for BARs, which may be above 4 GiB. */
#define WINDOW 0x40000000u
#define LARGE 0x200000u
u64 directories[4 * 512] __attribute__((aligned(4096)));
u64 tables[512] __attribute__((aligned(4096)));
u64 top[512] __attribute__((aligned(4096)));

static u32 map_bar(u32 config, u32 bar)
{
	u32 low = get32(config + 0x10 + 4 * bar), at = WINDOW + bar * LARGE;
	u64 address = low & ~15u;
	if (low & 4)
		address |= (u64)get32(config + 0x14 + 4 * bar) << 32;
	if (address == 0)
		fail('b');
	directories[at / LARGE] = (address & ~(u64)(LARGE - 1)) | 0x93;
	asm volatile("invlpg %0" : : "m"(*(u8 *)(u64)at));
	return at + (low & ~15u & (LARGE - 1));
}

/* The device: addresses of its registers (4.1.4). */
static u32 common, notify, notify_multiplier, table;

static u32 find(u16 device)
{
	for (u32 slot = 0; slot < 32; slot++) {
		u32 config = parameters.ecam + (slot << 15);
		if (get32(config) == ((u32)device << 16 | 0x1af4))
			return config;
	}
	fail('d');
	return 0;
}

static void capabilities(u32 config)
{
	put16(config + 4, get16(config + 4) | 6);
	for (u8 at = get8(config + 0x34); at != 0; at = get8(config + at + 1)) {
		u32 capability = config + at;
		if (get8(capability) == 0x11) { /* MSI-X: on */
			u32 where = get32(capability + 4);
			table = map_bar(config, where & 7) + (where & ~7u);
			put16(capability + 2, 0x8000);
		}
		if (get8(capability) != 9)
			continue;
		u8 kind = get8(capability + 3);
		if (kind == 1 && common == 0)
			common = map_bar(config, get8(capability + 4)) + get32(capability + 8);
		if (kind == 2 && notify == 0) {
			notify = map_bar(config, get8(capability + 4)) + get32(capability + 8);
			notify_multiplier = get32(capability + 16);
		}
	}
	if (!common || !notify || !table)
		fail('c');
}

#define VECTOR 0x50
static u64 gates[2 * 256];
static struct { u16 limit; u64 at; } __attribute__((packed)) gates_at;

/* One vector for all queues, to this processor. */
static void interrupts(void)
{
	u64 handler = (u64)interrupt;
	gates[2 * VECTOR] = (handler & 0xffff0000) << 32 | 0x8e0000080000 | (handler & 0xffff);
	gates_at.limit = sizeof(gates) - 1;
	gates_at.at = (u64)gates;
	asm volatile("lidt %0" : : "m"(gates_at));
	out(0x21, 0xff);
	out(0xa1, 0xff);
	put32(0xfee000f0, 0x1ff);
	put32(table, 0xfee00000);
	put32(table + 4, 0);
	put32(table + 8, VECTOR);
	put32(table + 12, 0);
}

/* A split queue (2.7) of at most 256 entries. */
#define MOST 256
struct descriptor { u64 address; u32 length; u16 flags, next; };
enum { NEXT = 1, DEVICE_WRITES = 2, INDIRECT = 4 };
struct queue {
	struct descriptor descriptors[MOST] __attribute__((aligned(4096)));
	u16 available[3 + MOST] __attribute__((aligned(4096)));
	u32 used[2 + 2 * MOST] __attribute__((aligned(4096)));
	u16 size, index, seen, added;
	u32 bell;
};
static struct queue queues[3];
static int has_event, has_indirect;

#define FEATURE_INDIRECT (1u << 28)
#define FEATURE_EVENT (1u << 29)

static void negotiate(u32 wanted)
{
	put8(common + 20, 0);
	while (get8(common + 20) != 0)
		;
	put8(common + 20, 1);
	put8(common + 20, 3);
	put32(common, 0);
	u32 took = get32(common + 4) & (wanted | FEATURE_INDIRECT | FEATURE_EVENT);
	put32(common + 8, 0);
	put32(common + 12, took);
	put32(common + 8, 1);
	put32(common + 12, 1); /* VIRTIO_F_VERSION_1 */
	put8(common + 20, 11);
	if (!(get8(common + 20) & 8))
		fail('f');
	has_event = (took & FEATURE_EVENT) != 0;
	has_indirect = (took & FEATURE_INDIRECT) != 0;
	put16(common + 16, 0xffff);
}

static void enable(u16 number)
{
	struct queue *queue = &queues[number];
	put16(common + 22, number);
	queue->size = get16(common + 24);
	if (queue->size > MOST)
		queue->size = MOST;
	put16(common + 24, queue->size);
	put16(common + 26, 0);
	if (get16(common + 26) != 0)
		fail('m');
	put32(common + 32, (u64)queue->descriptors);
	put32(common + 36, 0);
	put32(common + 40, (u64)queue->available);
	put32(common + 44, 0);
	put32(common + 48, (u64)queue->used);
	put32(common + 52, 0);
	queue->bell = notify + get16(common + 30) * notify_multiplier;
	put16(common + 28, 1);
}

/* Makes a chain's head available. */
static void add(struct queue *queue, u16 head)
{
	AT(u16, &queue->available[2 + queue->index % queue->size]) = head;
	queue->index++;
	queue->added++;
	asm volatile("" : : : "memory");
	AT(u16, &queue->available[1]) = queue->index;
}

/* Notifies the device of what was added, if it wants that (2.7.10). */
static void kick(struct queue *queue, u16 number)
{
	u16 added = queue->added;
	if (added == 0)
		return;
	queue->added = 0;
	barrier();
	if (has_event) {
		u16 event = AT(u16, (u16 *)queue->used + 2 + 4 * queue->size);
		if ((u16)(queue->index - event - 1) >= added)
			return;
	} else if (AT(u16, queue->used) & 1) {
		return;
	}
	put16(queue->bell, number);
}

static int is_used(struct queue *queue)
{
	return AT(u16, (u16 *)queue->used + 1) != queue->seen;
}

/* Asks for an interrupt at the next used chain (2.7.7). */
static void want_interrupt(struct queue *queue)
{
	if (has_event)
		AT(u16, &queue->available[2 + queue->size]) = queue->seen;
	else
		AT(u16, queue->available) = 0;
	barrier();
}

/* The next used chain's head. While there are any, the driver wants no interrupts. */
static u32 take(struct queue *queue)
{
	if (!has_event)
		AT(u16, queue->available) = 1;
	return AT(u32, &queue->used[1 + 2 * (queue->seen++ % queue->size)]);
}

/* Asks for no interrupt before half of the indices have passed. */
static void put_event(struct queue *queue)
{
	if (has_event)
		AT(u16, &queue->available[2 + queue->size]) = queue->seen + 0x8000;
	else
		AT(u16, queue->available) = 1;
}

static void describe(struct descriptor *to, u64 at, u32 length, u16 flags, u16 next)
{
	to->address = at;
	to->length = length;
	to->flags = flags;
	to->next = next;
}

/* Sleeps until the device has used a chain; only then are there no interrupts. */
static void wait(struct queue *queue)
{
	while (!is_used(queue)) {
		want_interrupt(queue);
		if (is_used(queue))
			return;
		asm volatile("sti; hlt; cli" : : : "memory");
	}
}

/* Where the data is: 1 MiB for each request. */
#define DATA 0x1000000u

/* The end of the preparation: two signs, with a pause between them for whoever observes the process to begin. */
static void begin_work(void)
{
	put8(common + 20, 15);
	sign();
	for (u32 left = parameters.delay; left != 0; left--)
		asm volatile("");
	sign();
}

/* A disk's requests. */
static struct { u32 kind, reserved; u64 sector; } headers[MOST];
static struct descriptor chains[MOST][3] __attribute__((aligned(16)));
static u8 statuses[MOST];
static u32 position, random_state;
#define DISK 0x4000000u /* the size of the disk in bytes */

static u32 next_offset(void)
{
	if (parameters.work != READ_RANDOM) {
		u32 at = position;
		position += parameters.bytes;
		if (position >= DISK)
			position = 0;
		return at;
	}
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 4) & (DISK - 1) & ~(parameters.bytes - 1);
}

static void request(u16 slot)
{
	struct queue *queue = &queues[0];
	u16 first = slot * 3, data = parameters.work == WRITE ? 0 : DEVICE_WRITES;
	headers[slot].kind = parameters.work == WRITE;
	headers[slot].sector = next_offset() / 512;
	statuses[slot] = 0xff;
	struct descriptor *chain = has_indirect ? chains[slot] : &queue->descriptors[first];
	u16 base = has_indirect ? 0 : first;
	describe(&chain[0], (u64)&headers[slot], 16, NEXT, base + 1);
	describe(&chain[1], DATA + slot * 0x100000u, parameters.bytes, NEXT | data, base + 2);
	describe(&chain[2], (u64)&statuses[slot], 1, DEVICE_WRITES, 0);
	if (has_indirect)
		describe(&queue->descriptors[first], (u64)chain, 48, INDIRECT, 0);
	add(queue, first);
}

static void disk(void)
{
	struct queue *queue = &queues[0];
	u32 sent = 0, done = 0;
	/* Read-only, block size, flush, topology, cache mode, and the numbers of segments: what Linux accepts. */
	negotiate(0xe64);
	enable(0);
	begin_work();
	while (sent < parameters.count && sent < parameters.depth)
		request(sent++);
	kick(queue, 0);
	while (done < parameters.count) {
		wait(queue);
		while (is_used(queue)) {
			u16 slot = take(queue) / 3;
			if (AT(u8, &statuses[slot]) != 0)
				fail('s');
			done++;
			if (sent < parameters.count) {
				request(slot);
				sent++;
			}
		}
		kick(queue, 0);
	}
}

/* A packet: the header (5.1.6) and a frame, for each slot; the same one again and again. */
#define HEADER 12
#define FRAME 0x10000u
#define RECEIVE 0x2000000u /* the buffers for received packets, of 2 KiB each */
enum { RX, TX };

static void big(u32 at, u32 value, u32 bytes)
{
	while (bytes--)
		put8(at++, value >> 8 * bytes);
}

/* The Internet checksum of words in the order of the network. */
static u16 checksum(u32 at, u32 bytes)
{
	u32 sum = 0;
	for (u32 i = 0; i < bytes; i += 2)
		sum += get8(at + i) << 8 | get8(at + i + 1);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The length of the packet at `at`: an ICMP echo request to the host, or a TCP segment to somebody else that needs
 * segmentation. */
static u32 packet(u32 at)
{
	u32 frame = at + HEADER, ip = frame + 14, inner = ip + 20;
	u32 pings = parameters.work == PING, length = 20 + (pings ? 8 : 20) + parameters.bytes;
	big(frame, 0x5254, 2);
	big(frame + 2, pings ? 1 : 9, 4);
	big(frame + 6, 0x5254, 2);
	big(frame + 8, 2, 4);
	big(frame + 12, 0x0800, 2);
	big(ip, 0x4500, 2);
	big(ip + 2, length, 2);
	big(ip + 8, pings ? 0x4001 : 0x4006, 2);
	big(ip + 12, 0xc0000202, 4); /* 192.0.2.2 */
	big(ip + 16, pings ? 0xc0000201 : 0xc0000209, 4);
	big(ip + 10, checksum(ip, 20), 2);
	if (pings) {
		big(inner, 0x0800, 2);
		big(inner + 2, checksum(inner, 8 + parameters.bytes), 2);
	} else {
		big(inner, 0x00010002, 4);
		big(inner + 12, 0x5010, 2);
		put8(at, 1);	    /* NEEDS_CSUM */
		put8(at + 1, 1);    /* GSO_TCPV4 */
		put16(at + 2, 54);  /* the headers' length */
		put16(at + 4, 1448);
		put16(at + 6, 34);
		put16(at + 8, 16);
	}
	return HEADER + 14 + length;
}

/* Makes a buffer available to receive a packet. */
static void receive(u16 slot)
{
	describe(&queues[RX].descriptors[slot], RECEIVE + slot * 2048, 2048, DEVICE_WRITES, 0);
	add(&queues[RX], slot);
}

static void send(u16 slot, u32 length)
{
	describe(&queues[TX].descriptors[slot], DATA + slot * 2 * FRAME, length, 0, 0);
	add(&queues[TX], slot);
}

/* Sends packets, so many at once. An echo request is done when its reply has come, another packet when it is sent. */
static void network(void)
{
	u32 sent = 0, done = 0, length = 0, pings = parameters.work == PING;
	struct queue *answers = &queues[pings ? RX : TX];
	/* Checksums, MAC, segmentation, mergeable buffers, status. */
	negotiate(0x18821);
	enable(RX);
	enable(TX);
	for (u16 slot = 0; slot < queues[RX].size; slot++)
		receive(slot);
	for (u16 slot = 0; slot < parameters.depth; slot++)
		length = packet(DATA + slot * 2 * FRAME);
	begin_work();
	kick(&queues[RX], RX);
	while (sent < parameters.count && sent < parameters.depth)
		send(sent++, length);
	kick(&queues[TX], TX);
	while (done < parameters.count) {
		wait(answers);
		/* What was sent needs no interrupt if an answer follows. */
		while (pings && is_used(&queues[TX]))
			take(&queues[TX]);
		while (is_used(answers)) {
			u16 slot = take(answers);
			u32 frame = RECEIVE + slot * 2048 + HEADER;
			if (pings && (get16(frame + 12) != 8 || get8(frame + 34) != 0)) {
				/* Not a reply: the host has something else to say. */
				receive(slot);
				continue;
			}
			done++;
			if (pings)
				receive(slot);
			if (sent < parameters.count)
				send(pings ? sent % parameters.depth : slot, length), sent++;
		}
		if (pings)
			put_event(&queues[TX]);
		kick(&queues[RX], RX);
		kick(&queues[TX], TX);
	}
}

/* A stream between the guest and a process of the host: a packet's header (5.10.6). */
struct packet {
	u64 from, to;
	u32 from_port, to_port, length;
	u16 type, op;
	u32 flags, room, taken;
} __attribute__((packed));
enum { REQUEST = 1, RESPONSE, RESET, SHUTDOWN, DATA_PACKET, CREDIT, ASK_CREDIT };
enum { EVENTS = 2 };
#define CID 3
#define PORT 52
#define ROOM 0x40000u	  /* what Linux gives the host */
#define LARGEST 0x10000u  /* the most data that Linux sends in a packet */
#define BUFFER 0x1000u
#define SLOTS 64
static struct packet packets[SLOTS];
static u32 said, their_room, their_taken, put, got, told, is_open;

static void say(u16 op, u32 length)
{
	struct queue *queue = &queues[TX];
	u16 slot = said++ % SLOTS, first = slot * 2;
	struct packet packet = { CID, 2, 1000, PORT, length, 1, op, 0, ROOM, got };
	packets[slot] = packet;
	told = got;
	put += length;
	describe(&queue->descriptors[first], (u64)&packets[slot], sizeof(packet), length ? NEXT : 0, first + 1);
	describe(&queue->descriptors[first + 1], DATA + slot * LARGEST, length, 0, 0);
	add(queue, first);
}

/* Takes a packet of the host, and gives the buffer back. */
static void hear(void)
{
	u16 slot = take(&queues[RX]);
	struct packet *packet = (struct packet *)(u64)(RECEIVE + slot * BUFFER);
	their_room = packet->room;
	their_taken = packet->taken;
	if (packet->op == RESPONSE)
		is_open = 1;
	else if (packet->op == DATA_PACKET)
		got += packet->length;
	else if (packet->op == ASK_CREDIT)
		say(CREDIT, 0);
	else if (packet->op != CREDIT)
		fail('r');
	describe(&queues[RX].descriptors[slot], RECEIVE + slot * BUFFER, BUFFER, DEVICE_WRITES, 0);
	add(&queues[RX], slot);
}

/* Sleeps until the device has used a chain of either queue. */
static void wait_either(void)
{
	while (!is_used(&queues[RX]) && !is_used(&queues[TX])) {
		want_interrupt(&queues[RX]);
		want_interrupt(&queues[TX]);
		if (is_used(&queues[RX]) || is_used(&queues[TX]))
			return;
		asm volatile("sti; hlt; cli" : : : "memory");
	}
}

/* Sends as much as was asked for, or takes as much of what the host sends without end. */
static void stream(void)
{
	u32 total = parameters.count * parameters.bytes, out = parameters.work == STREAM_OUT, sent = 0;
	negotiate(1);
	enable(RX);
	enable(TX);
	enable(EVENTS);
	for (u16 slot = 0; slot < queues[RX].size; slot++) {
		describe(&queues[RX].descriptors[slot], RECEIVE + slot * BUFFER, BUFFER, DEVICE_WRITES, 0);
		add(&queues[RX], slot);
	}
	begin_work();
	kick(&queues[RX], RX);
	say(REQUEST, 0);
	for (;;) {
		while (is_used(&queues[TX])) {
			take(&queues[TX]);
			sent++;
		}
		while (is_used(&queues[RX]))
			hear();
		if (ROOM - (got - told) < LARGEST)
			say(CREDIT, 0);
		while (is_open && out && put < total && said - sent < SLOTS - 2) {
			u32 most = their_room - (put - their_taken);
			if (most > total - put)
				most = total - put;
			if (most > LARGEST)
				most = LARGEST;
			if (most == 0)
				break;
			say(DATA_PACKET, most);
		}
		kick(&queues[RX], RX);
		kick(&queues[TX], TX);
		if (out ? put == total && said == sent : got >= total)
			return;
		wait_either();
	}
}

void run(void)
{
	u32 is_disk = parameters.work < PING, is_stream = parameters.work > SEND;
	capabilities(find(is_disk ? 0x1042 : is_stream ? 0x1053 : 0x1041));
	interrupts();
	if (is_disk)
		disk();
	else if (is_stream)
		stream();
	else
		network();
	sign();
	out(parameters.end_port, parameters.end_value);
}
