"""What keeps a model from forgetting, as arithmetic on losses and features: FLOW, LDIFS, distilled rehearsal."""
